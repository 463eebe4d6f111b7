"""ZeRO-3's replaced host work on one GPU: the bits of DeepSpeed's own way, before TRIED_ON may name it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.journal.records import read_lines
from cluster.machine import hold_port
from cluster.network.world import World, rank_variables

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch sees on this machine"),
]

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from launch.__main__ import main
from training.zero import host_work
host_work.TRIED_ON = set(sys.argv.pop(1).split())
sys.exit(main())
"""


def train(folder: Path, run_yaml: Callable[..., Path], tried_on: str) -> tuple[list[tuple[float, float]], str]:
    """Return the loss and the gradient norm of each step, and what the rank said."""
    yaml = run_yaml(folder, steps=12, save_every_steps=6, validation_rows=4)
    command = [sys.executable, "-c", PROGRAM, tried_on, "train", str(yaml)]
    with hold_port() as held:
        world = World(rank=0, size=1, local_rank=0, local_size=1, master=("127.0.0.1", held.getsockname()[1]))
        environment = {**os.environ, **rank_variables(world)}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, check=False
        )
    assert done.returncode == 0, done.stderr
    lines = read_lines(folder / "run" / "metrics.jsonl")
    return [(line["loss"], line["gradient_norm"]) for line in lines], done.stderr


def test_the_bits_are_those_of_deepspeed_s_own_way(tmp_path: Path, run_yaml: Callable[..., Path]) -> None:
    expected, said = train(tmp_path / "own", run_yaml, "cpu")
    assert "not tried on cuda" in said
    found, said = train(tmp_path / "replaced", run_yaml, "cpu cuda")
    assert "not tried on" not in said
    assert found == expected
