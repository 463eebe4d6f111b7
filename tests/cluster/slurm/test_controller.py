"""Questions to a controller that does not always answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.slurm.controller import Controller, JobFacts

AWAY = """
echo >>asked; [ $(wc -l <asked) -gt 3 ] || { echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1; }
"""
DETAILS = """
[ "$2" = hostnames ] && { echo "$3" | tr , '\\n'; exit; }
echo '   Nodes=a1,a3 CPU_IDs=0-1 Mem=0 GRES=gpu:h200:2(IDX:0-1)'
echo '   Nodes=a2 CPU_IDs=0 Mem=0 GRES='
"""


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Controller]:
    """A controller that does as told, beside a scontrol of our own."""

    def make(does: str) -> Controller:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{does}")
        (tmp_path / "scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        return Controller("7", 0.0)

    return make


def test_a_question_is_asked_until_it_is_answered(controller: Callable[[str], Controller]) -> None:
    answer = "echo 'JobId=7 JobName=a b' ; echo '   JobState=RUNNING Reason=None Dependency=(null)'"
    assert controller(AWAY + answer).facts() == JobFacts("RUNNING", "None")


ARRAY = """
printf 'JobId=5 ArrayJobId=5 ArrayTaskId=3 JobName=JobId=7\n   JobState=PENDING\n\n'
printf 'JobId=7 ArrayJobId=5 ArrayTaskId=0 JobName=a\n   JobState=RUNNING Command=JobState=FAILED\n\n'
"""


@pytest.mark.parametrize(("job", "state"), [("7", "RUNNING"), ("5_3", "PENDING"), ("5", "PENDING"), ("8", "GONE")])
def test_of_several_tasks_of_an_array_the_one_that_is_asked_for_is_told(
    controller: Callable[[str], Controller], job: str, state: str
) -> None:
    assert replace(controller(ARRAY), job=job).facts().state == state


def test_a_node_that_only_slurm_knows_is_reached_by_the_address_that_slurm_has(
    controller: Callable[[str], Controller],
) -> None:
    slurm = controller("echo NodeName=$3 Arch=x86_64 ; echo '   NodeAddr=10.0.0.'${#3} NodeHostName=$3")
    assert slurm.addresses(["localhost", "127.0.0.1"]) == ["localhost", "127.0.0.1"]
    assert slurm.addresses(["localhost", "only.slurm.invalid"]) == ["10.0.0.9", "10.0.0.18"]
    assert controller("exit 0").addresses(["only.slurm.invalid"]) == ["only.slurm.invalid"]  # an old Slurm, or none


def test_a_job_may_run_if_slurm_never_answers(controller: Callable[[str], Controller]) -> None:
    assert controller("exit 1").facts().may_run


def test_a_job_that_slurm_does_not_know_is_over(
    controller: Callable[[str], Controller], caplog: pytest.LogCaptureFixture
) -> None:
    assert not controller("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1").facts().may_run
    assert len(caplog.records) == 1


def test_a_requeue_is_asked_for_until_slurm_has_taken_or_refused_it(controller: Callable[[str], Controller]) -> None:
    assert controller(AWAY).requeue()
    assert not controller("echo 'Requested operation is presently disabled' >&2; exit 1").requeue()


def test_the_gpus_of_each_host_are_what_slurm_has_given_the_job(controller: Callable[[str], Controller]) -> None:
    assert controller(DETAILS).gpus() == {"a1": 2, "a3": 2, "a2": 0}


def test_the_end_of_the_time_limit_is_asked_for_in_seconds_and_a_job_without_one_has_none(
    controller: Callable[[str], Controller], tmp_path: Path
) -> None:
    asks = controller("")
    for says, told in (('[ "$SLURM_TIME_FORMAT" = %s ] && echo 1700000000', 1_700_000_000), ("echo NONE", None)):
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / "squeue").chmod(0o755)
        assert asks.end_time() == told


def test_only_the_step_of_that_name_is_killed(controller: Callable[[str], Controller], tmp_path: Path) -> None:
    asks = controller("")
    for name, text in {
        "squeue": "printf '7.0 shardline-1-0\n7.batch batch\n7.1 shardline-1-1\n'",
        "scancel": f"echo $* >>{tmp_path}/killed",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    asks.kill_step(7, "shardline-1-1")
    assert (tmp_path / "killed").read_text() == "--signal=KILL 7.1\n"


def test_a_job_without_the_programs_of_slurm_says_so(controller: Callable[[str], Controller], tmp_path: Path) -> None:
    asks = controller("")
    (tmp_path / "scontrol").unlink()
    with pytest.raises(ClusterError, match="scontrol: not found"):
        asks.facts()
