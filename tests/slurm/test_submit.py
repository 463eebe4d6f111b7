"""The chain of `shardline submit` in the queue of a real Slurm."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
UNTIL_OVER = """import os, time
if os.environ.get("SHARDLINE_LAUNCHER") == "srun":
    while not os.path.exists("over"):
        time.sleep(0.1)
    os._exit(0)
"""  # imported by each Python when it starts


@pytest.fixture
def chain(slurm: Any, tmp_path: Path, run_yaml: Callable[..., Path]) -> list[Any]:
    """Submit a run whose training lasts until its folder has a file `over`; return the jobs."""
    path = run_yaml(tmp_path / "a run")
    cluster = {"nodes": 2, "export": {"cpus_per_node": 2}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cluster": cluster}))
    (tmp_path / "sitecustomize.py").write_text(UNTIL_OVER)
    command = ["env", f"PYTHONPATH={tmp_path}:{ROOT}", sys.executable, "-m", "launch", "submit", "run.yaml"]
    said = slurm.on("ctl", *command, cwd=path.parent)
    return [slurm.job(line.split()[2].rstrip(","), path.parent) for line in said.splitlines()[:3]]


def state_of(job: Any) -> str:
    return str(job.facts()["JobState"])


def test_a_chain_waits_for_a_training_that_is_requeued_and_a_cancelled_training_ends_it(chain: list[Any]) -> None:
    train, export, evaluate = chain
    train.wait_for(lambda: state_of(train) == "RUNNING")
    train.cluster.on("ctl", "scontrol", "requeue", train.number)
    (train.folder / "over").touch()
    train.wait_for(lambda: train.facts()["Restarts"] == "1" and state_of(train) == "PENDING")
    (train.folder / "over").unlink()
    time.sleep(3)  # longer than Slurm's scheduler needs to look at what waits
    assert [state_of(export), state_of(evaluate)] == ["PENDING", "PENDING"]
    train.cluster.on("ctl", "scancel", train.number)
    assert [job.wait()["JobState"] for job in chain] == ["CANCELLED"] * 3
