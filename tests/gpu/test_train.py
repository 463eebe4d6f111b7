"""A run on one GPU: trained, killed, started again, exported, scored, by the commands that a person types."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.journal.records import read_lines

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch sees on this machine"),
]

ROOT = Path(__file__).resolve().parents[2]


def shardline(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launch", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def done(*arguments: object) -> str:
    process = shardline(*arguments)
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 0, said
    return said


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_lines(folder / "run" / "metrics.jsonl")]


def test_a_run_killed_on_the_gpu_continues_as_the_one_that_was_not(
    tmp_path: Path, run_yaml: Callable[..., Path]
) -> None:
    settings: dict[str, Any] = {"steps": 16, "save_every_steps": 4, "validation_rows": 4}
    undisturbed = run_yaml(tmp_path / "a", **settings)
    done("train", undisturbed)
    killed = run_yaml(tmp_path / "b", **settings)
    process = shardline("train", killed)
    while not (tmp_path / "b" / "run" / "checkpoints" / "step-000004" / "commit.json").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done("train", killed)
    expected, found = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert found == expected  # to the bit: train.deterministic
    assert expected[-1] < expected[0]
    proofs = [line for line in read_lines(tmp_path / "a" / "run" / "attempts.jsonl") if line["event"] == "proof"]
    assert proofs[0]["isolation"] == "attention by documents" and proofs[0]["leak"] <= 1e-3
    done("export", undisturbed)
    done("evaluate", undisturbed)
    scored = json.loads((tmp_path / "a" / "run" / "evaluation.json").read_text())["models"]
    assert scored["tuned"]["loss"] < scored["base"]["loss"]
