"""A small corpus of every shape, and a server that misbehaves as told."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import DataConfig
from data_prep.encode.encoding import Encoder, EncoderSpec
from data_prep.encode.tokenizer import SPECIAL_TOKENS, train_tokenizer
from data_prep.prepare import prepare
from data_prep.shards import Manifest

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "ünïcode",
    "sings",
    "and",
    "12",
    "geese",
]


def sentence(seed: int, words: int) -> str:
    return " ".join(WORDS[(seed * 7 + i * i) % len(WORDS)] for i in range(words)) + f" {seed}."


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder: 12 books of 1 to 12 lines, 60 pairs, 20 conversations."""
    folder = tmp_path / "corpus"
    (folder / "books").mkdir(parents=True)
    for book in range(12):
        text = "\n".join(sentence(book * 100 + line, 20) for line in range(book + 1))
        (folder / "books" / f"{book:02d}.txt").write_text(text, encoding="utf-8")
    pairs = [{"question": sentence(n, 5), "answer": sentence(n + 500, n % 9 + 1)} for n in range(60)]
    chats = [
        {
            "messages": [
                {"role": role, "content": sentence(n + turn, 4)}
                for turn, role in enumerate(("system", "user", "assistant", "user", "assistant"))
            ]
        }
        for n in range(1000, 1020)
    ]
    write_lines(folder / "pairs.jsonl", pairs)
    write_lines(folder / "chats.jsonl", chats)
    return folder


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def lines_file(tmp_path: Path) -> Callable[..., Path]:
    """Write rows, or raw lines, as a .jsonl file and return its path."""

    def write(*rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        encoded = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"".join(line + b"\n" for line in encoded))
        return path

    return write


@pytest.fixture
def config_of() -> Callable[..., DataConfig]:
    """Return the configuration for some paths, with a tokenizer trained on them."""

    def build(*paths: Path | dict[str, Any], **settings: Any) -> DataConfig:
        sources = [path if isinstance(path, dict) else {"path": str(path)} for path in paths]
        defaults = {"row_tokens": 64, "tokenizer": {"train": {"vocab_size": 512}}, "workers": 1, "executor": "local"}
        defaults["cleaning"] = {"near_duplicates": "off"}  # `corpus` is made of the same few words
        return DataConfig.model_validate({"sources": sources, **defaults, **settings})

    return build


@pytest.fixture
def prepared(tmp_path: Path, config_of: Callable[..., DataConfig]) -> Callable[..., Manifest]:
    """Prepare some paths into a folder and return the manifest."""

    def run(*paths: Path | dict[str, Any], into: str = "data", model: str | None = None, **settings: Any) -> Manifest:
        return prepare(config_of(*paths, **settings), tmp_path / into, model, seed=1)

    return run


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A small tokenizer with ChatML's control tokens."""
    return train_tokenizer(["Hello world, be kind and say bye to you. " * 20], 512)


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_with(tokenizer: Any) -> Callable[..., Encoder]:
    """Build an encoder for `tokenizer`, with any of its specification changed."""

    def build(template: str | None, **changes: Any) -> Encoder:
        spec = EncoderSpec(
            rules=tokenizer.backend_tokenizer.to_str(),
            vocab_size=len(tokenizer),
            bos=None,
            eos=0,
            pad=0,
            chat_template=template,
            special_tokens=tokenizer.special_tokens_map,
            control_tokens=tuple(SPECIAL_TOKENS),
        )
        return Encoder(EncoderSpec(**{**spec.__dict__, **changes}))

    return build


@pytest.fixture
def test_data() -> Path:
    """The real corpora; see the skip's reason."""
    folder = os.environ.get("SHARDLINE_TEST_DATA")
    if not folder:
        pytest.skip("set SHARDLINE_TEST_DATA to the folder of real corpora (books/, gsm8k/, stories260k/)")
    return Path(folder)


@dataclass
class Server:
    """What a local HTTP server serves: `faults` are answers given once each, before the file."""

    address: str
    body: bytes = b"one document\n" * 100
    etag: str | None = '"1"'
    faults: list[str] = field(default_factory=list)
    requests: int = 0
    ranges: list[str | None] = field(default_factory=list)
    """The Range header of each request."""
    at_once: int = 0
    most_at_once: int = 0
    delay_s: float = 0.0


class Handler(BaseHTTPRequestHandler):
    """Faults: a number (that status, with Retry-After after a colon), 'drop' (no answer), 'short' (the body ends
    early), 'stall' (the body stops and the line stays open until the client closes it), 'whole' (200 to a Range),
    'shifted' (another range than asked for), 'garbled' (right size, wrong bytes), 'changed' (from now on another file).
    """

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        state: Server = self.server.state  # type: ignore[attr-defined]
        with self.server.mutex:  # type: ignore[attr-defined]
            state.requests += 1
            state.ranges.append(self.headers["Range"])
            state.at_once += 1
            state.most_at_once = max(state.most_at_once, state.at_once)
            fault = state.faults.pop(0) if state.faults else "none"
        time.sleep(state.delay_s)
        with self.server.mutex:  # type: ignore[attr-defined]
            state.at_once -= 1  # before the answer: who has all of it may ask for the next file at once
        self.answer(state, fault)

    def answer(self, state: Server, fault: str) -> None:
        status, _, retry_after = fault.partition(":")
        if status.isdigit():
            self.send_response(int(status))
            if retry_after:
                self.send_header("Retry-After", retry_after)
            self.end_headers()
            return
        if fault == "drop":
            return
        if fault == "changed":
            state.body, state.etag = bytes(reversed(state.body)), '"2"'
        start = self.range_start(state) if fault != "whole" else 0
        self.send_body(state, start, fault)

    def range_start(self, state: Server) -> int:
        asked, condition = self.headers["Range"], self.headers["If-Range"]
        return 0 if asked is None or condition not in (None, state.etag) else int(asked[6:-1])

    def send_body(self, state: Server, start: int, fault: str) -> None:
        rest = state.body[start:]
        self.send_response(206 if start else 200)
        if start:
            first = start + 1 if fault == "shifted" else start
            self.send_header("Content-Range", f"bytes {first}-{len(state.body) - 1}/{len(state.body)}")
        if state.etag:
            self.send_header("ETag", state.etag)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if fault == "garbled":
            rest = bytes(byte ^ 1 for byte in rest)
        self.wfile.write(rest[: len(rest) // 2] if fault in ("short", "stall") else rest)
        if fault == "stall":
            with contextlib.suppress(ConnectionError):
                self.rfile.read(1)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A local server that misbehaves as told."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.request_queue_size = 128
    state = Server(address=f"http://127.0.0.1:{listener.server_port}")
    listener.state, listener.mutex = state, threading.Lock()  # type: ignore[attr-defined]
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state
    listener.shutdown()
    listener.server_close()
    thread.join()
