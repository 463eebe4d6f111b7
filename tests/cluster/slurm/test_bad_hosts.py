"""A job that is to have other hosts, beside a Slurm that says what the tests tell it to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.slurm import controller as questions
from cluster.slurm.bad_hosts import NoAnswerError, requeue_without, why_no_others
from cluster.slurm.controller import Controller

JOB = "JobId=7 JobName=a b Requeue=1 BatchFlag=1 Partition=gpu ReqNodeList=(null) ExcNodeList=(null) Reservation=(null)"
NODES = """node1|alloc|8|gpu:h100:8|(null)
node2|alloc|8|gpu:h100:8|(null)
node3|mix-|8|gpu:h100:8|(null)
node4|idle*|8|gpu:h100:8|(null)
node5|drain|8|gpu:h100:8|(null)
node6|idle|8|gpu:a100:8|(null)
"""
SCONTROL = """#!/bin/sh
PATH=/usr/bin:/bin
echo "$@" >>asked
case "$*" in
  *"show job"*) cat job ;;
  *"show hostnames"*) echo "$3" | tr , '\\n' ;;
  *"show reservation"*) echo "ReservationName=big Nodes=node1,node2" ;;
  requeue*) {requeue} ;;
  update*) {update} ;;
esac
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Controller]:
    """A Slurm with a job of node1 and node2."""

    def make(job: str = JOB, requeue: str = "true", update: str = "true", nodes: str = NODES) -> Controller:
        for name, text in (
            ("scontrol", SCONTROL.format(requeue=requeue, update=update)),
            ("sinfo", "#!/bin/sh\nPATH=/usr/bin:/bin\n[ -s nodes ] && cat nodes\n"),
        ):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        (tmp_path / "job").write_text(job)
        (tmp_path / "nodes").write_text(nodes)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(questions, "TRIES", 3)
        return Controller("7", 0.0)

    return make


@pytest.mark.parametrize(
    ("job", "bad", "least", "why"),
    [
        (JOB, {"node2"}, 2, ""),
        (JOB, {"node2", "node3"}, 2, "partition gpu has 1 other usable nodes of its kind, and it needs 2"),
        (JOB, {"node2", "node3"}, 1, ""),
        (JOB.replace("BatchFlag=1", "BatchFlag=0"), {"node2"}, 1, "no batch job"),
        (JOB.replace("Requeue=1", "Requeue=0"), {"node2"}, 1, "may not be requeued"),
        (JOB.replace("ReqNodeList=(null)", "ReqNodeList=node2"), {"node2"}, 1, "--nodelist"),
        (JOB.replace("ReqNodeList=(null)", "ReqNodeList=node1"), {"node2"}, 1, ""),
        (JOB.replace("ExcNodeList=(null)", "ExcNodeList=node3"), {"node2"}, 2, "has 1 other"),
        (JOB.replace("Reservation=(null)", "Reservation=big"), {"node2"}, 2, "has 1 other"),
    ],
)
def test_a_job_gets_other_hosts_only_where_there_are_some_of_its_kind(
    slurm: Callable[..., Controller], job: str, bad: set[str], least: int, why: str
) -> None:
    told = why_no_others(slurm(job), ["node1", "node2"], bad, least)
    assert why in told and bool(told) == bool(why)


def test_a_job_is_requeued_without_the_bad_hosts_and_those_that_its_owner_has_excluded(
    slurm: Callable[..., Controller], tmp_path: Path
) -> None:
    waits_later = "[ $(grep -c ^update asked) -gt 2 ] || { echo 'Job is no longer pending execution' >&2; exit 1; }"
    assert requeue_without(slurm(JOB.replace("ExcNodeList=(null)", "ExcNodeList=node9"), update=waits_later), ["node2"])
    asked = [line for line in (tmp_path / "asked").read_text().splitlines() if line.startswith(("requeue", "update"))]
    assert asked == ["requeue 7", *["update JobId=7 ExcNodeList=node2,node9"] * 3]


def test_a_slurm_that_refuses_is_told_from_one_that_does_not_answer(
    slurm: Callable[..., Controller], tmp_path: Path
) -> None:
    assert not requeue_without(slurm(requeue="echo 'Requested operation is presently disabled' >&2; exit 1"), ["node2"])
    assert "update" not in (tmp_path / "asked").read_text()
    away = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"
    with pytest.raises(NoAnswerError, match="`scontrol requeue 7` was not answered"):
        requeue_without(slurm(requeue=away), ["node2"])
    with pytest.raises(NoAnswerError, match=r"`sinfo .*` was not answered"):
        why_no_others(slurm(nodes=""), ["node1"], ["node1"], 1)
