"""What Slurm's queue says about a run's jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.paths import RunPaths
from cluster.submission.jobs_of_run import QueueState

SQUEUE = """#!/bin/sh
PATH=/usr/bin:/bin
echo "$@" >>asked
printf '7|RUNNING|None|mine\\n8|PENDING|Dependency|shardline-export\\n9|RUNNING|None|of another user\\n'
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """A run that job 7 trains, and that jobs 8 and 9 were submitted for; Slurm has given 9 to another one since."""
    (tmp_path / "squeue").write_text(SQUEUE)
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    paths = RunPaths(tmp_path / "run")
    paths.logs.mkdir(parents=True)
    paths.submissions.mkdir()
    paths.rank_log("7-1", 0).touch()
    paths.rank_log("local-1", 0).touch()
    jobs = [{"job": "8", "name": "shardline-export"}, {"job": "9", "name": "shardline-evaluate"}]
    (paths.submissions / "8.json").write_text(json.dumps({"jobs": jobs}))
    return paths


def test_the_jobs_that_train_a_run_or_were_submitted_for_it_are_told(run: RunPaths) -> None:
    told = "job 7 (mine, RUNNING), job 8 (shardline-export, PENDING: Dependency)"
    queue = QueueState(run)
    assert [queue.text(), queue.text()] == [told, told]
    assert len(Path("asked").read_text().splitlines()) == 1  # the second time within seconds
    assert "--jobs=7,8,9" in Path("asked").read_text()


def test_a_queue_that_does_not_answer_is_told_and_costs_no_status(run: RunPaths) -> None:
    Path("squeue").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    assert "unknown: squeue did not say" in QueueState(run).text()
    (run.submissions / "8.json").write_text("{")
    assert "8.json: damaged" in QueueState(run).text()


def test_without_slurm_or_without_jobs_nothing_is_told(run: RunPaths, tmp_path: Path) -> None:
    assert QueueState(RunPaths(tmp_path / "another")).text() == ""
    Path("squeue").unlink()
    assert QueueState(run).text() == ""
