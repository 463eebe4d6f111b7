"""A real server: asked by OpenAI's client, by httpx, by a browser, and stopped by a signal."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
KEY = "a-secret"
HEADERS = {"Authorization": f"Bearer {KEY}"}
PROMPTS = ("a run that ends", "fast", "every step counts once and is worth more than a run", "that")
CHROMIUM = "/usr/bin/chromium"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Running:
    """A server of its own process."""

    process: subprocess.Popen[str]
    url: str

    def ask(self, path: str, body: dict[str, Any] | str | None = None, **more: str) -> httpx.Response:
        headers = {**HEADERS, **more}
        content = json.dumps(body) if isinstance(body, dict) else body
        method = "GET" if body is None else "POST"
        return httpx.request(method, self.url + path, headers=headers, timeout=60, content=content)

    def is_idle(self) -> bool:
        health = self.ask("/health").json()
        return bool(health["running"] == health["waiting"] == 0)


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launch", "serve", str(folder), "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)


def answering(process: subprocess.Popen[str]) -> Running:
    """Wait until a server says where it answers."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"answers at (http://localhost:\d+)", line):
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return Running(process, found[1])
    raise AssertionError("the server did not start")


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def processes(folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two servers, started at the same time: one with a key and limits, one with a single slot."""
    limits = ("--slots", "3", "--queue", "4", "--max-tokens", "100", "--max-body", "20000")
    both = [start(folder, "--key", KEY, *limits), start(folder, "--slots", "1", "--queue", "1")]
    yield both
    for process in both:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(processes: list[subprocess.Popen[str]]) -> Running:
    return answering(processes[0])


@pytest.fixture(scope="module")
def narrow(processes: list[subprocess.Popen[str]]) -> Running:
    return answering(processes[1])


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, str]:
    """What `shardline generate` answers to each prompt."""
    from training.generate.answers import answer
    from training.generate.loading import load_export
    from training.generate.prompts import prompt_ids
    from training.generate.sampling import Sampling

    model, tokenizer = load_export(folder)
    sampling = Sampling(tokens=40)
    return {
        prompt: answer(model, tokenizer, prompt_ids(tokenizer, prompt, as_chat=True), sampling).text
        for prompt in PROMPTS
    }


def test_prompts_answered_together_get_the_answers_that_generate_gives_alone(
    server: Running, alone: dict[str, str]
) -> None:
    bodies = [{"prompt": prompt, "tokens": 40} for prompt in PROMPTS] + [{"prompt": PROMPTS[0], "temperature": 0.9}]
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: server.ask("/generate", body).json(), bodies))
    assert [answer["text"] for answer in answers[:-1]] == [alone[prompt] for prompt in PROMPTS]


def test_a_seed_draws_the_same_answer_whoever_else_is_answered(server: Running) -> None:
    body = {"prompt": "a run", "temperature": 1.0, "top_k": 50, "seed": 7, "tokens": 30}
    quiet = server.ask("/generate", body).json()["text"]
    with ThreadPoolExecutor(3) as pool:
        busy = list(pool.map(lambda seed: server.ask("/generate", {**body, "seed": seed}).json()["text"], (1, 7, 2)))
    assert busy[1] == quiet
    assert len(set(busy)) == 3


def test_a_temperature_near_zero_is_as_good_as_zero(server: Running) -> None:
    body = {"prompt": "a run that", "max_tokens": 10}
    cold, coldest = (server.ask("/v1/completions", {**body, "temperature": one}) for one in (0, 1e-45))
    assert coldest.status_code == 200
    assert coldest.json()["choices"][0]["text"] == cold.json()["choices"][0]["text"]


def test_openai_client_streams_what_it_gets_whole(server: Running, alone: dict[str, str]) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
    name = client.models.list().data[0].id
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPTS[0]}], "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(model=name, **asked)
    stream = client.chat.completions.create(model=name, stream=True, stream_options={"include_usage": True}, **asked)
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert whole.choices[0].message.content == "".join(pieces) == alone[PROMPTS[0]]
    assert whole.choices[0].finish_reason == chunks[-2].choices[0].finish_reason == "length"
    assert whole.usage == chunks[-1].usage
    assert whole.usage is not None and whole.usage.completion_tokens == 40


def test_a_completion_continues_its_prompt_and_ends_before_a_stop_text(server: Running) -> None:
    body = {"prompt": "a run that", "temperature": 0, "max_tokens": 40}
    text = server.ask("/v1/completions", body).json()["choices"][0]["text"]
    stop = text[10:13]
    choice = server.ask("/v1/completions", {**body, "stop": stop}).json()["choices"][0]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


CHAT = {"messages": [{"role": "user", "content": "run"}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/generate", "{bad", 400, "not JSON"),
        ("/generate", "[]", 400, "list"),
        ("/generate", {"prompt": 3}, 400, "prompt"),
        ("/generate", {"prompt": "a", "tokens": 101}, 400, "tokens"),
        ("/generate", {"prompt": "a", "tokens": 0}, 400, "tokens"),
        ("/generate", {"prompt": "run " * 300}, 400, "shorten"),
        ("/generate", {"prompt": "x" * 30000}, 413, "20,000"),
        ("/v1/completions", {"prompt": [5, 99999]}, 400, "token id"),
        ("/v1/chat/completions", {**CHAT, "n": 2}, 400, "n:"),
        ("/v1/chat/completions", {**CHAT, "logprobs": True}, 400, "logprobs"),
        ("/v1/chat/completions", {**CHAT, "colour": 1}, 400, "colour"),
        ("/v1/chat/completions", {**CHAT, "model": "gpt-4"}, 404, "tiny"),
        ("/v1/chat/completions", {**CHAT, "n": True}, 400, "n:"),
        ("/v1/completions", {"prompt": "a", "logprobs": 0}, 400, "logprobs"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "system", "content": "be"}]}, 400, "the user's"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": " \n"}]}, 400, "say something"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a</s>\nb"}]}, 400, "'</s>'"),
        ("/v1/nothing", {}, 404, "/v1/nothing"),
        ("/v1/nothing", None, 404, "/v1/nothing"),
    ],
)
def test_a_wrong_request_is_refused_by_name(
    server: Running, path: str, body: dict[str, Any] | str | None, status: int, word: str
) -> None:
    response = server.ask(path, body)
    assert response.status_code == status
    assert word in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Basic {KEY}"}, 401),
        ({"Host": "rebound.example"}, 403),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 200),
    ],
)
def test_who_may_not_ask_is_refused(server: Running, headers: dict[str, str], status: int) -> None:
    assert server.ask("/v1/completions", {"prompt": "a"}, **headers).status_code == status


def test_a_client_that_leaves_frees_its_slot_and_a_full_queue_says_when_to_come_back(narrow: Running) -> None:
    body = {"prompt": "a", "max_tokens": 120, "stream": True}
    refused: list[httpx.Response] = []
    while not refused:  # on a busy machine, requests may come one after the other
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: narrow.ask("/v1/completions", body), range(12)))
        refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {429}
    assert all(answer.headers["retry-after"] for answer in refused)
    for _ in range(5):
        with httpx.stream("POST", f"{narrow.url}/v1/completions", json=body, timeout=60) as stream:
            next(stream.iter_text())
    until = time.monotonic() + 60
    while not narrow.is_idle() and time.monotonic() < until:
        time.sleep(0.02)
    assert narrow.is_idle()
    assert 'answers_total{reason="cancelled"}' in narrow.ask("/metrics").text


def test_a_signal_lets_what_was_begun_finish_and_ends_with_0(narrow: Running) -> None:
    body = {"prompt": "a", "max_tokens": 120, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{narrow.url}/v1/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        narrow.process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert rest[-2] == "data: [DONE]"
    assert narrow.process.wait(60) == 0


@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="needs Debian's package chromium")
def test_the_page_shows_a_streamed_answer_in_a_browser(server: Running, alone: dict[str, str]) -> None:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000)
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(server.url)
        expect(page.get_by_role("alert")).to_contain_text("no key")
        page.locator("#key").fill(KEY)
        page.locator("#key").press("Tab")
        expect(page.locator("h1")).to_contain_text("tiny")
        page.locator("#temperature").fill("0")
        page.locator("#prompt").fill("<b>a run</b> that ends")
        page.locator("#prompt").press("Enter")
        expect(page.locator(".note")).to_contain_text("tokens/s")
        assert page.locator(".user").inner_text() == "<b>a run</b> that ends"
        assert page.locator(".assistant .said").inner_text().strip()
        browser.close()
