"""A small corpus of every shape, and a server that misbehaves as told."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import DataConfig
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
    faults: list[str] = field(default_factory=list)
    requests: int = 0


@pytest.fixture
def server() -> Iterator[Server]:
    """A local server. Faults: '500', '404', 'short' (the body ends early)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests += 1
            fault = state.faults.pop(0) if state.faults else "none"
            if fault.isdigit():
                self.send_error(int(fault))
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.body)))
            self.end_headers()
            self.wfile.write(state.body[: len(state.body) // 2] if fault == "short" else state.body)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the tests' output clean."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(address=f"http://127.0.0.1:{listener.server_port}")
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state
    listener.shutdown()
    listener.server_close()
    thread.join()
