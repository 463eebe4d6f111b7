"""The job array of `shardline tune --slurm` on a real Slurm."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

TRAIN = str(Path(__file__).resolve().parents[2] / "launch" / "train.sh")
STOPPED_ONCE = """import os, time
if os.environ.get("SHARDLINE_LAUNCHER") == "srun":
    if os.environ["SLURM_ARRAY_TASK_ID"] != "1":
        while not os.path.exists("over"):
            time.sleep(0.1)
        os._exit(0)
    if os.environ.get("SLURM_RESTART_COUNT") != "1":
        os._exit(75)
    open("over", "w").close()
    os._exit(0)
"""  # imported by each Python when it starts
TASK = f"""#!/usr/bin/env bash
exec bash {shlex.quote(TRAIN)} task-$SLURM_ARRAY_TASK_ID/run.yaml
"""


def test_a_task_that_is_put_back_into_the_queue_leaves_the_others_of_its_array_alone(
    slurm: Any, run_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(STOPPED_ONCE)
    (tmp_path / "task.sh").write_text(TASK)
    for task in range(2):
        run_yaml(tmp_path / f"task-{task}")
    export = f"--export=ALL,PYTHONPATH={tmp_path}"
    array = slurm.submit("--array=0-1", "-n1", "--requeue", export, "task.sh", cwd=tmp_path)
    tasks = [slurm.job(f"{array.number}_{task}", tmp_path) for task in range(2)]  # the last has the array's own job id
    assert [task.wait()["JobState"] for task in tasks] == ["COMPLETED", "COMPLETED"]
    assert [task.facts()["Restarts"] for task in tasks] == ["0", "1"]
