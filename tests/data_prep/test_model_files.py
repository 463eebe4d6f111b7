"""A model is found within seconds, here or in what was fetched before, or the reason is told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from data_prep.model_files import found_folder, looks_local, weight_files


@pytest.mark.parametrize("path", ["./llama", "../llama", "/models/llama", "~/llama", "models/llama/", "a/b/llama"])
def test_a_path_that_only_a_folder_can_have_is_never_asked_of_the_hub(path: str) -> None:
    assert looks_local(path)
    with pytest.raises(ConfigError, match=r"model\.path: '.*llama/?' is no folder here; "):
        found_folder(path)


def test_a_mistyped_folder_is_told_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "llama-3b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not looks_local("meta-llama/llama-3b")
    with pytest.raises(ConfigError, match=r"'models/lama-3b' is no folder here; did you mean models/llama-3b\?"):
        found_folder("models/lama-3b")
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ConfigError, match=r"model.gguf is a file; name the folder"):
        found_folder("model.gguf")


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found_folder("~/llama") == tmp_path / "llama"


def test_the_weights_are_the_files_of_the_index_or_the_one_that_transformers_loads(tmp_path: Path) -> None:
    assert weight_files(tmp_path) == ["model.safetensors"]
    index = {"weight_map": {"a": "model-2-of-2.safetensors", "b": "model-1-of-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_files(tmp_path) == ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]


def asked_for(name: str, home: Path, **environment: str) -> str:
    """Ask for a model of the hub in a process of its own; return what it says."""
    code = "from data_prep.model_files import found_folder\n"
    code += f"try: print(found_folder({name!r}, weights=True))\nexcept Exception as error: print(type(error), error)"
    env = {**os.environ, "HF_HOME": str(home), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_hub_that_does_not_answer_is_told_with_a_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        said = asked_for("a/b", tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "ConfigError" in said and "the hub cannot be reached" in said and "`hf download a/b`" in said


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
