"""The real command: in this process, or as one of its own."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Result:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    def assert_refused(self, *words: str) -> None:
        """Check that a person must act: exit code 2, one error that holds all of the words, no traceback."""
        assert self.code == 2, self.err
        assert "Traceback" not in self.err
        lines = self.err.splitlines(keepends=True)
        errors = [number for number, line in enumerate(lines) if " E " in line]
        assert len(errors) == 1, self.err
        said = "".join(lines[errors[0] :])
        for word in words:
            assert word in said


@pytest.fixture
def shardline(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Result]]:
    """Run a verb in this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Result(code, said.out, said.err)

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def shardline_process() -> Callable[..., Result]:
    """Run a verb as a person does; keywords are set in its environment."""

    def run(*arguments: str | Path, **environment: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "launch", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with everything that a YAML can name by a relative path."""
    folder = tmp_path / "my project"
    (folder / "corpus").mkdir(parents=True)
    for number in range(40):
        (folder / "corpus" / f"{number}.txt").write_text(
            f"A run that ends is worth {number} times more than a fast one."
        )
    shutil.copytree(tiny_model, folder / "model")
    (folder / "zero.json").write_text('{"zero_optimization": {"stage": 3}}')
    (folder / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    values = {
        "name": "t",
        "data": {"sources": [{"path": "corpus/*.txt"}], "row_tokens": 64, "chat_template": "chat.jinja"},
        "model": {"path": "model"},
        "train": {"deepspeed": "zero.json"},
    }
    (folder / "run.yaml").write_text(json.dumps(values))
    monkeypatch.chdir(folder)
    return folder
