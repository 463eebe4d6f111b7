"""The launcher of a Slurm job, beside a disk that fails."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ClusterError, ConfigError, DataError
from cluster.paths import RunPaths
from cluster.slurm.controller import Controller
from cluster.slurm.job import SlurmJob
from cluster.slurm.layout import plan_layout
from launch.ranks.slurm_job import Launcher, load_in_job, tasks_in_file

JOB = SlurmJob(number=7, name="7", node_list="a1", nodes=1, restarts=0, cpus=(4,), tasks=(1,), task_file=None, gpus=0)


@pytest.fixture
def launcher(tmp_path: Path) -> Callable[..., Launcher]:
    """A launcher whose check before a launch fails so often."""

    def make(failures: int, error: Exception, starts: int = 0) -> Launcher:
        left = [error] * failures

        def note(record: Callable[[], None]) -> None:
            if left:
                raise left.pop()
            record()

        return Launcher(RunPaths(tmp_path / "run"), note, JOB, Controller("7", 0.0), 0.0, starts=starts)

    return make


def test_a_disk_that_fails_for_a_while_does_not_end_a_start(launcher: Callable[..., Launcher], tmp_path: Path) -> None:
    launcher(4, OSError(errno.EIO, "Input/output error")).note_patiently()
    assert (tmp_path / "run" / "attempts.jsonl").read_text().count("launch") == 1


def test_a_disk_that_fails_for_good_ends_it(launcher: Callable[..., Launcher]) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        launcher(5, OSError(errno.EIO, "Input/output error")).note_patiently()


def test_data_that_is_missing_is_told_at_once_at_first_and_waited_for_later(launcher: Callable[..., Launcher]) -> None:
    missing = DataError("manifest.json: there is no prepared data here")
    with pytest.raises(DataError):
        launcher(1, missing).note_patiently()
    launcher(1, missing, starts=1).note_patiently()


def test_a_requeued_job_waits_for_its_configuration(
    launcher: Callable[..., Launcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = launcher(2, ConfigError("run.yaml: no such file"))
    job.job = replace(JOB, restarts=1)
    job.note_patiently()
    tries: list[int] = []

    def load() -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise ConfigError("run.yaml: no such file")
        return "run"

    monkeypatch.setenv("SHARDLINE_PATIENCE", "0")
    with pytest.raises(ConfigError):
        load_in_job(load)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert str(load_in_job(load)) == "run"


def test_a_stop_while_the_disk_is_away_is_a_stop(launcher: Callable[..., Launcher]) -> None:
    job = launcher(9, OSError(errno.EIO, "Input/output error"))
    job.signals.asked.append(signal.SIGUSR2)
    job.note_patiently()
    assert job.start_ranks(plan_layout(["a1"], (4,), (1,), {})).code == 75


SRUN = """#!/bin/sh
echo 'shardline: a task begins' >&2
echo '{"event": "no-start", "time": "2026-11-20T12:00:00Z", "step": 0, "reason": "full", "exit_code": CODE}' >>RECORD
echo 'srun: error: a1: task 1: Killed' >&2
exit 137
"""


@pytest.mark.parametrize(("recorded", "code"), [(2, 2), (75, 75), (0, 0), (1, 137)])
def test_what_the_ranks_recorded_is_final_though_srun_had_to_kill_the_others_or_memory_once_ran_out(
    launcher: Callable[..., Launcher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: int, code: int
) -> None:
    job = launcher(0, DataError(""))
    job.note_patiently()
    for name, text in {
        "srun": SRUN.replace("CODE", str(recorded)).replace("RECORD", str(job.paths.attempts)),
        "squeue": "#!/bin/sh\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert job.start_ranks(plan_layout(["a1"], (4,), (2,), {})).code == code


def test_ranks_start_in_the_container_that_the_job_names(
    launcher: Callable[..., Launcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = plan_layout(["a1"], (4,), (1,), {})
    monkeypatch.setenv("SHARDLINE_SRUN_OPTIONS", "--container-image=a.sqsh '--container-mounts=/a b:/a b'")
    monkeypatch.setenv("SHARDLINE_PYTHON", "apptainer exec --nv 'my image.sif' python3")
    words = launcher(0, DataError("")).command(layout, "step")
    inside = words.index("sh")
    assert words[inside - 2 : inside] == ["--container-image=a.sqsh", "--container-mounts=/a b:/a b"]
    assert words[inside + 4 : inside + 11] == ["apptainer", "exec", "--nv", "my image.sif", "python3", "-m", "launch"]


def test_an_arbitrary_layout_counts_the_lines_of_each_host(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a2\na1\na2\n")
    assert tasks_in_file(tmp_path / "hosts", ["a1", "a2"]) == [1, 2]
    with pytest.raises(ClusterError, match="names a1, a2, but the job has a1, a3"):
        tasks_in_file(tmp_path / "hosts", ["a1", "a3"])


def test_hosts_have_one_rank_each_where_nobody_said_how_many() -> None:
    assert tasks_in_file(None, ["a1", "a2"]) == [1, 1]
