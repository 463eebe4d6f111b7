"""`shardline serve` under load: 16 clients that stream, and others that misbehave meanwhile; then it is stopped.

`SHARDLINE_TEST_DATA` names the folder that holds stories260k/. SERVING_S=20 shortens the two minutes. Each server has
the machine to itself; `transformers serve` gets the same clients with the same prompts for a third of the time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

CLIENTS = 16
SECONDS = float(os.environ.get("SERVING_S", "120"))
KEY = "benchmark"
BEGINNINGS = ("Once upon a time", "The little dog", "Lily and Tom went", "One day, a big", "There was", "Mom said")
TOKENS = 100


def main() -> None:
    """Measure our server and transformers' own, and print a line of JSON for each."""
    data = os.environ.get("SHARDLINE_TEST_DATA")
    if not data:
        raise SystemExit("set SHARDLINE_TEST_DATA to the folder that holds stories260k/")
    model = Path(data) / "stories260k"
    ours = [sys.executable, "-m", "launch", "serve", str(model), "--key", KEY, "--port", "8731"]
    asyncio.run(ours_under_load(ours, "http://localhost:8731"))
    theirs = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--device", "cpu"]
    asyncio.run(theirs_under_load([*theirs, "--port", "8732"], "http://localhost:8732", str(model)))


async def ours_under_load(command: list[str], url: str) -> None:
    process = await started(command, url)
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        await stream(client, "stories260k", 5)
        before = state(process)
        until = time.monotonic() + SECONDS
        clients = asyncio.gather(*[repeat(client, "stories260k", until) for _ in range(CLIENTS)])
        counts, statuses, left = await asyncio.gather(clients, misbehave(client, until), leave(client, until))
        await asyncio.sleep(1)
        after, health = state(process), (await client.get("/health")).json()
        ends = [asyncio.create_task(stream(client, "stories260k", 400)) for _ in range(CLIENTS)]
        await asyncio.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        rest = await asyncio.gather(*ends, return_exceptions=True)
    line = {
        "server": "shardline serve",
        "seconds": SECONDS,
        "requests": sum(requests for requests, _ in counts),
        "tokens_per_s": round(sum(tokens for _, tokens in counts) / SECONDS),
        "statuses": statuses,
        "clients_that_left": left,
        "rss_mb": [before["rss_mb"], after["rss_mb"]],
        "threads": [before["threads"], after["threads"]],
        "sockets": [before["sockets"], after["sockets"]],
        "afterwards": health,
        "served_after_sigterm": sum(isinstance(tokens, int) and tokens > 0 for tokens in rest),
        "exit_code": process.wait(60),
    }
    print(json.dumps(line), flush=True)


async def theirs_under_load(command: list[str], url: str, model: str) -> None:
    process = await started(command, url)
    seconds = SECONDS / 3
    try:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await stream(client, model, 5)
            until = time.monotonic() + seconds
            counts = await asyncio.gather(*[repeat(client, model, until) for _ in range(CLIENTS)])
    finally:
        process.kill()
    line = {
        "server": "transformers serve",
        "seconds": seconds,
        "requests": sum(requests for requests, _ in counts),
        "tokens_per_s": round(sum(tokens for _, tokens in counts) / seconds),
    }
    print(json.dumps(line), flush=True)


async def started(command: list[str], url: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    async with httpx.AsyncClient() as client:
        for _ in range(600):
            try:
                await client.get(f"{url}/health")
            except httpx.TransportError:
                await asyncio.sleep(0.2)
            else:
                return process
    raise SystemExit(f"{command}: does not answer")


async def stream(client: httpx.AsyncClient, model: str, tokens: int, beginning: str = BEGINNINGS[0]) -> int:
    """Read one answer to its end; return the tokens of it, as many as its usage says."""
    body = {"model": model, "prompt": beginning, "max_tokens": tokens, "temperature": 0.8, "stream": True}
    body |= {"stream_options": {"include_usage": True}}
    used = 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event: dict[str, Any] = json.loads(line[6:])
                used = (event.get("usage") or {}).get("completion_tokens", used)
    return used


async def repeat(client: httpx.AsyncClient, model: str, until: float) -> tuple[int, int]:
    """Ask one thing after another; return how many answers there were, and their tokens."""
    requests = tokens = 0
    for beginning in itertools.cycle(BEGINNINGS):
        if time.monotonic() >= until:
            break
        tokens += await stream(client, model, TOKENS, beginning)
        requests += 1
    return requests, tokens


async def leave(client: httpx.AsyncClient, until: float) -> int:
    """Ask for a long answer and leave after its first piece, again and again."""
    left = 0
    while time.monotonic() < until:
        body = {"prompt": "One day", "max_tokens": 500, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            await anext(response.aiter_raw())
        left += 1
        await asyncio.sleep(0.5)
    return left


async def misbehave(client: httpx.AsyncClient, until: float) -> dict[str, list[int]]:
    """Send what has to be refused, in turns; return the status codes of each kind."""
    big = b"x" * 100_000_000
    wrong = {"Authorization": "Bearer wrong"}
    asked: dict[str, dict[str, Any]] = {
        "body of 100 MB": {"content": big},
        "unknown model": {"json": {"prompt": "a", "model": "gpt-4"}},
        "bad JSON": {"content": b"{bad"},
        "wrong key": {"json": {"prompt": "a"}, "headers": wrong},
        "unknown option": {"json": {"prompt": "a", "logit_bias": {"3": 1}}},
        "page elsewhere": {"json": {"prompt": "a"}, "headers": {"Origin": "https://elsewhere.example"}},
    }
    seen: dict[str, set[int]] = {name: set() for name in asked}
    while time.monotonic() < until:
        for name, what in asked.items():
            seen[name].add((await client.post("/v1/completions", **what)).status_code)
        await asyncio.sleep(2)
    return {name: sorted(codes) for name, codes in seen.items()}


def state(process: subprocess.Popen[bytes]) -> dict[str, float]:
    found = psutil.Process(process.pid)
    sockets = len(found.net_connections())
    return {"rss_mb": found.memory_info().rss // 1_000_000, "threads": found.num_threads(), "sockets": sockets}
