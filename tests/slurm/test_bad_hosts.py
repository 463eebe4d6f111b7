"""A job on a real Slurm that finds a bad host among its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.journal.records import read_events
from cluster.paths import RunPaths

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

TRAIN = str(Path(__file__).resolve().parents[2] / "launch" / "train.sh")
RANKS_TELL = """import os
if "SHARDLINE_FORK_SERVER" in os.environ:
    os._exit(1)  # ranks are then started
if os.environ.get("SHARDLINE_LAUNCHER") == "srun" and "RANK" in os.environ:
    print("rank", os.environ["RANK"], "on", os.environ["SLURMD_NODENAME"], flush=True)
    os._exit(0)
"""  # imported by each Python when it starts: the ranks only tell where they are


def test_a_job_leaves_a_broken_host_and_trains_on_others(
    slurm: Any, run_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    run_yaml(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "sitecustomize.py").write_text(RANKS_TELL)
    slurm.on("node2", "mount", "-t", "tmpfs", "private", str(tmp_path / "run"))  # not the disk that the others share
    try:
        export = f"--export=ALL,SHARDLINE_PREFLIGHT=on,PYTHONPATH={tmp_path}"
        job = slurm.submit("-N2", "--partition=spare", export, TRAIN, "run.yaml", cwd=tmp_path)
        facts = job.wait()
    finally:
        slurm.on("node2", "umount", str(tmp_path / "run"))
    assert [facts[name] for name in ("ExitCode", "Restarts", "NodeList", "ExcNodeList")] == [
        "0:0",
        "1",
        "node[1,3]",
        "node2",
    ]
    assert "node2 is excluded from this run: preflight: folder:" in job.log()
    assert {"rank 0 on node1", "rank 1 on node3"} <= set(job.log().splitlines())
    events = [event["event"] for event in read_events(RunPaths(tmp_path / "run"))]
    assert events == ["launch", "host-excluded", "no-start", "launch"]
