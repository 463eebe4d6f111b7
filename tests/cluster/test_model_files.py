"""A model is found within seconds, here or in what was fetched before, or the reason is told."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster.errors import ConfigError
from cluster.model_files import HUB_TIMEOUT_S, found_folder, looks_local, require_weights, weight_files


@pytest.mark.parametrize("path", ["./llama", "../llama", "/models/llama", "~/llama", "models/llama/", "a/b/llama"])
def test_a_path_that_only_a_folder_can_have_is_never_asked_of_the_hub(path: str) -> None:
    assert looks_local(path)
    with pytest.raises(ConfigError, match=r"model\.path: '.*llama/?' is no folder here; "):
        found_folder(path)


def test_a_mistyped_folder_is_told_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "llama-3b").mkdir(parents=True)
    (tmp_path / "model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'./models/lama-3b' is no folder here; did you mean models/llama-3b\?"):
        found_folder("./models/lama-3b")
    with pytest.raises(ConfigError, match=r"model.gguf is a file; name the folder"):
        found_folder("model.gguf")


def test_a_name_that_may_be_of_the_hub_or_a_mistyped_folder_is_told_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "llama-3b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"no folder here \(did you mean models/llama-3b\?\), it was never fetched"):
        found_folder("models/lama-3b")


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found_folder("~/llama") == tmp_path / "llama"


def test_the_weights_are_the_files_of_the_index_or_the_one_that_transformers_loads(tmp_path: Path) -> None:
    assert weight_files(tmp_path) == ["model.safetensors"]
    index = {"weight_map": {"a": "model-2-of-2.safetensors", "b": "model-1-of-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_files(tmp_path) == ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]


def asked_for(name: str, home: Path, *, patience_s: float = HUB_TIMEOUT_S, **environment: str) -> str:
    """Ask for a model of the hub in a process of its own; return what it says."""
    code = f"from cluster import model_files; model_files.HUB_TIMEOUT_S = {patience_s}\n"
    code += "from cluster.model_files import found_folder\n"
    code += f"try: print(found_folder({name!r}, weights=True))\nexcept Exception as error: print(type(error), error)"
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_told_with_a_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        said = asked_for("a/b", tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "ConfigError" in said and "the Hub cannot be reached" in said and "`hf download a/b`" in said


def test_without_the_network_what_was_fetched_before_is_used(tmp_path: Path) -> None:
    said = asked_for("a/b", tmp_path, HF_HUB_OFFLINE="1")
    assert "a/b is no folder here, it was never fetched, and HF_HUB_OFFLINE is set" in said

    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    (tmp_path / "hub" / "models--a--b" / "refs").mkdir()
    (tmp_path / "hub" / "models--a--b" / "refs" / "main").write_text("0" * 40)
    assert asked_for("a/b", tmp_path, HF_HUB_OFFLINE="1") == str(snapshot)


class Hub(BaseHTTPRequestHandler):
    """A repository of the hub, `a/b`, and what was fetched from it."""

    files: ClassVar[dict[str, str]] = {
        "config.json": "{}",
        "tokenizer.json": "{}",
        "model.safetensors.index.json": '{"weight_map": {"w": "model-00001-of-00001.safetensors"}}',
        "model-00001-of-00001.safetensors": "weights",
        "consolidated.safetensors": "the same weights",
        "adapter_model.safetensors": "other weights",
        "original/model.safetensors": "the same weights",
        "onnx/config.json": "{}",
        "pytorch_model.bin": "the same weights",
    }
    fetched: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        names, name = list(self.files), self.path.partition(f"/a/b/resolve/{'0' * 40}/")[2]
        if self.path.startswith("/api/models/a/b/tree"):
            self.answer(json.dumps([{"type": "file", "path": n, "size": len(self.files[n]), "oid": n} for n in names]))
        elif self.path.startswith("/api/models/a/b"):
            self.answer(json.dumps({"id": "a/b", "sha": "0" * 40, "siblings": [{"rfilename": n} for n in names]}))
        elif name in self.files:
            if self.command == "GET":
                self.fetched.append(name)
            self.answer(self.files[name])
        else:
            self.send_error(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, body: str) -> None:
        self.send_response(200)
        tag = f'"{hashlib.sha1(self.path.encode()).hexdigest()}"'  # the cache holds one file a tag
        for key, value in {"Content-Length": str(len(body)), "ETag": tag, "X-Repo-Commit": "0" * 40}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""


def test_a_repository_without_safetensors_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(ConfigError, match=r"a/b of the Hub has no model.safetensors, only pytorch_model.bin; fetch it"):
        require_weights({"config.json", "pytorch_model.bin"}, "a/b", "model.path")
    require_weights({"tokenizer.json"}, "a/b", "data.tokenizer.path")


def test_from_the_hub_only_what_transformers_would_load_is_fetched(tmp_path: Path) -> None:
    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{hub.server_port}"

    folder = Path(asked_for("a/b", tmp_path, patience_s=60.0, HF_ENDPOINT=address, HF_HUB_DISABLE_XET="1"))
    hub.shutdown()
    hub.server_close()

    small = {"config.json", "tokenizer.json", "model.safetensors.index.json"}
    assert {*Hub.fetched} == small | {"model-00001-of-00001.safetensors"}
    assert asked_for("a/b", tmp_path, HF_HUB_OFFLINE="1") == str(folder)
