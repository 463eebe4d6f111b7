"""A Hub dataset, from a local server that answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import SourceConfig
from data_prep.fetch.hub_layout import OTHER_SPLIT
from data_prep.fetch.sources import find_corpus

ROOT = Path(__file__).resolve().parents[3]
REPO = "owner/name"
COMMIT = "0" * 40
FILES = {
    "README.md": b"about",
    "data/train-00000.jsonl": b'{"text": "one"}\n' * 40,
    "data/train-00001.jsonl": b'{"text": "two"}\n' * 40,
    "data/test-00000.jsonl": b'{"text": "held out"}\n',
}


def entry(path: str) -> dict[str, Any]:
    """Return what the Hub's tree says of a file; large ones have a sha256."""
    data = FILES[path]
    large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 99}
    item = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    return {**item, "lfs": large} if path.endswith(".jsonl") else item


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0].replace("%2F", "/")
        tree, resolve = f"/api/datasets/{REPO}/tree/", f"/datasets/{REPO}/resolve/"
        if path.startswith(tree):
            folder = path.removeprefix(tree).partition("/")[2]
            deep = "recursive=true" in self.path.lower()
            below = [name for name in FILES if name.startswith(folder)]
            inside = [name for name in below if deep or "/" not in name[len(folder) + 1 :]]
            folders = [] if folder else [{"type": "directory", "path": "data", "size": 0, "oid": COMMIT}]
            self.send_json([*folders, *map(entry, inside)])
        elif path.startswith(resolve):
            self.send_file(FILES[path.removeprefix(resolve).partition("/")[2]])
        elif path.startswith(f"/api/datasets/{REPO}"):
            self.send_json({"id": REPO, "sha": COMMIT, "siblings": [], "private": False, "gated": False, "tags": []})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_json([entry(path) for path in asked["paths"] if path in FILES])

    def send_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, data: bytes) -> None:
        self.server.sent.append(self.headers["Authorization"])  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def hub() -> Iterator[Any]:
    listener = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    listener.sent = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield listener
    listener.shutdown()
    listener.server_close()
    thread.join()


PROGRAM = """
import sys
from pathlib import Path
from data_prep.config import SourceConfig
from data_prep.fetch import remote_listing
remote_listing.HUB_TIMEOUT_S = 60.0
for files in remote_listing.fetch_sources([SourceConfig.model_validate_json(sys.argv[1])], Path(sys.argv[2])).values():
    for name, path in files:
        print(name, path.read_bytes()[:15].decode() if path.exists() else path.name)
"""


def fetched(hub: Any, folder: Path, **source: str) -> list[str]:
    """Fetch in a process of its own: the Hub's address is read when its library is imported."""
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_TOKEN": "hf_secret",
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-c", PROGRAM, json.dumps(source), str(folder)]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_dataset_id_gives_the_files_of_its_training_split(hub: Any, tmp_path: Path) -> None:
    lines = fetched(hub, tmp_path, dataset=REPO)

    assert [line.split("/")[-1] for line in lines] == [
        "README.md description of the dataset",
        "test-00000.jsonl file of another split",
        'train-00000.jsonl {"text": "one"}',
        'train-00001.jsonl {"text": "two"}',
    ]
    assert hub.sent == ["Bearer hf_secret"] * 2


def test_what_is_not_fetched_of_a_dataset_is_not_read_as_the_format_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "train.dat").write_text("text,n\nhere,1\n")
    files = [("hf://x/train.dat", tmp_path / "train.dat"), ("hf://x/test.dat", Path(OTHER_SPLIT))]
    source = SourceConfig(dataset=REPO, format="csv")

    corpus = find_corpus([source], {f"hf://datasets/{REPO}": files})

    assert [file.info.path for file in corpus.files] == ["hf://x/train.dat"]
    assert corpus.passed_over == {REPO: {OTHER_SPLIT: 1}}


@pytest.mark.parametrize(("pattern", "count"), [("data/*.jsonl", 3), ("data/test-00000.jsonl", 1)])
def test_an_hf_address_is_a_glob_or_a_file(hub: Any, tmp_path: Path, pattern: str, count: int) -> None:
    lines = fetched(hub, tmp_path, url=f"hf://datasets/{REPO}/{pattern}")

    assert len(lines) == count and all('{"text"' in line for line in lines)
