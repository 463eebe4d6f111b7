"""`shardline serve`: answer over HTTP, with a chat page, OpenAI's API and metrics on one port."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import shlex
import socket
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.model_files import ADAPTER_CONFIG
from launch.arguments import not_negative, positive
from launch.models.named_model import NamedModel, add_model, named_model, open_named, speaks_as_chat
from launch.wording import say

log = logging.getLogger(__name__)

LIBRARIES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}
LOCAL = ("localhost", "127.0.0.1", "::1")


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_model(command)
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)"
    )
    command.add_argument("--port", type=port, default=8000, help="port to listen on (default: %(default)s)")
    command.add_argument("--name", help="the model's name in the API (default: the run's or the folder's)")
    keys = command.add_mutually_exclusive_group()
    keys.add_argument(
        "--key", help="clients must send it as a Bearer token; other users of this machine can see it here"
    )
    keys.add_argument("--key-file", type=Path, help="file whose first line is the key")
    command.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="name that a proxy asks for; repeatable"
    )
    limits = command.add_argument_group("limits")
    limits.add_argument("--slots", type=positive, help="requests answered at the same time (default: 16)")
    limits.add_argument("--queue", type=positive, help="requests that wait for a slot, others get 429 (default: 64)")
    limits.add_argument("--max-tokens", type=positive, help="longest answer (default: 2048)")
    limits.add_argument(
        "--context", type=positive, help="longest prompt with its answer, in tokens (default: the model's)"
    )
    limits.add_argument("--max-body", type=positive, help="largest request, in bytes (default: 1048576)")
    limits.add_argument("--time-limit", type=not_negative, help="longest time for a request, in seconds (default: 300)")
    limits.add_argument(
        "--grace", type=not_negative, help="time for requests to finish after a stop signal, in seconds (default: 30)"
    )


def run(options: argparse.Namespace) -> int:
    """Serve a model until a signal comes."""
    missing = [name for module, name in LIBRARIES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(f"`serve` needs {', '.join(missing)}; run `pip install -e '.[serve]'` in the checkout")
    named, key = named_model(options), key_of(options)
    say(f"Loading {named.folder} ...")  # before seconds of imports
    from training.serve.server import Door, serve, start_engine, take_port

    door = Door(host=options.host, port=options.port, key=key, hosts=frozenset(map(str.lower, options.allow_host)))
    bound = take_port(door)
    name = options.name or named.name
    model, tokenizer = open_named(named)
    as_chat = speaks_as_chat(named, tokenizer)
    served = start_engine(model, tokenizer, name, as_chat=as_chat, limits=limits_of(options))
    address = bound.getsockname()[1]
    return serve(served, door, bound, lambda: say(welcome(named, name, options.host, address, has_key=key is not None)))


def port(text: str) -> int:
    """Parse a port; 0 takes a free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to 65535")
    return int(text)


def key_of(options: argparse.Namespace) -> str | None:
    """Return the key that clients need. Raises ConfigError if it is empty."""
    key: str | None = options.key
    if options.key_file is not None:
        key = next(iter(options.key_file.read_text(encoding="utf-8").splitlines()), "").strip()
    if key is not None and (not key or not key.isascii() or not key.isprintable() or " " in key):
        where = options.key_file or "--key"
        raise ConfigError(
            f"{where}: a key is printable ASCII without spaces; write one, such as `openssl rand -hex 24` gives"
        )
    return key


def limits_of(options: argparse.Namespace) -> Any:
    """Return the limits that were typed, with the defaults for the others."""
    from training.serve.batching.limits import Limits

    typed = {
        "slots": options.slots,
        "queue": options.queue,
        "answer_tokens": options.max_tokens,
        "context_tokens": options.context,
        "body_bytes": options.max_body,
        "request_s": options.time_limit or None,
        "grace_s": options.grace,
    }
    return Limits(**{name: value for name, value in typed.items() if value is not None})


def welcome(named: NamedModel, name: str, host: str, number: int, *, has_key: bool) -> str:
    """Return how the server is reached, and how to serve the same model in production."""
    is_local = host in LOCAL
    shown = "localhost" if is_local or host in ("0.0.0.0", "::") else host
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{number}"
    header = " -H 'Authorization: Bearer KEY'" if has_key else ""
    ask = f"curl {url}/generate{header} -d '{json.dumps({'prompt': 'Hello!'})}'"
    lines = [
        f"The model {name} answers at {url}  (Ctrl-C stops it)",
        f"  chat page     {url}",
        f"  from afar     ssh -L {number}:localhost:{number} {socket.gethostname()}   then {url} over there",
        f"  one prompt    {ask}",
        f"  OpenAI's API  base URL {url}/v1, model {name}",
        f"  metrics       {url}/metrics",
        f"  production    {vllm_line(named, name)}",
    ]
    if not is_local and not has_key:
        log.warning(
            "--host %s without --key: everybody who reaches this machine can use the model; set --key-file", host
        )
    return "\n".join(lines)


def vllm_line(named: NamedModel, name: str) -> str:
    """Return the command that serves the model with vLLM; an adapter is served on its base model."""
    folder = named.folder.resolve()
    if not (folder / ADAPTER_CONFIG).is_file():
        return shlex.join(["vllm", "serve", str(folder), "--served-model-name", name])
    adapter = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    words = ["vllm", "serve", adapter["base_model_name_or_path"], "--enable-lora", "--lora-modules", f"{name}={folder}"]
    rank = ["--max-lora-rank", str(adapter["r"])] if adapter.get("r", 0) > 16 else []
    return shlex.join(words + rank)
