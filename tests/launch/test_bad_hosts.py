"""What a job does about bad hosts, fault by fault, beside fake `srun`, `scontrol` and `sinfo`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ClusterError
from cluster.journal.records import read_events, write_event
from cluster.preflight import excluded_hosts
from cluster.preflight.excluded_hosts import read_excluded
from cluster.preflight.one_step import printed
from cluster.slurm import controller as questions
from cluster.slurm.controller import Controller
from cluster.slurm.layout import Layout
from launch.preflight.at_start import Preflight, guard_of
from launch.preflight.host_guard import HostGuard
from launch.saved_config import load_run
from training.reporting.status import status_text

SRUN = """#!/bin/bash
PATH=/usr/bin:/bin
echo >>looks
cat "look$(wc -l <looks)" 2>/dev/null
"""
SCONTROL = """#!/bin/bash
PATH=/usr/bin:/bin
[[ ! -e away ]] || { echo "Unable to contact slurm controller (connect failure)" >&2; exit 1; }
case "$*" in
  *"show job"*) echo "JobId=7 Requeue=1 BatchFlag=1 Partition=gpu ReqNodeList=(null) ExcNodeList=(null)" ;;
  *) echo "$@" >>asked ;;
esac
"""
SINFO = """#!/bin/bash
PATH=/usr/bin:/bin
for node in $(<nodes); do echo "$node|idle|8|gpu:8|(null)"; done
"""
GPU = {
    "index": "0",
    "uuid": "GPU-0",
    "name": "H100",
    "driver_version": "550",
    "memory.total": "81559",
    "memory.used": "4",
}
GPUS: dict[str, Any] = {"devices": 8, "visible": None, "of_slurm": "1", "has_smi": True, "xids": [], "said": []}
WHOLE: dict[str, Any] = {
    "gpus": {**GPUS, "gpus": [{**GPU, "mig.mode.current": "Disabled", "health": None, "processes": []}]},
    "code": {"code": "1", "commit": "c", "torch": "2.13", "deepspeed": "1", "transformers": "5"},
    "folder": {
        "path": "run",
        "is_seen": True,
        "problem": None,
        "filesystem": "nfs",
        "free_bytes": 9**20,
        "free_files": None,
    },
}
LOST = {**WHOLE, "gpus": {**GPUS, "gpus": []}}
FULL = {**WHOLE, "folder": {**WHOLE["folder"], "problem": "the disk is full"}}
MISTAKEN = {**WHOLE, "gpus": {"error": "KeyError: 'uuid'"}}
HUNG = {**WHOLE, "gpus": {"error": "no answer within 15 s"}}
Looks = Sequence[dict[str, Any] | None]  # of node2, which srun asks once or twice; None if it does not answer


@dataclass
class Job:
    """A job on node1 and node2, in a partition that has node3 too."""

    guard: HostGuard
    folder: Path
    layout: Layout

    def start(
        self, *looks: dict[str, Any] | None, node1: dict[str, Any] | None = WHOLE, stopping: bool = False
    ) -> int | None:
        (self.folder / "looks").unlink(missing_ok=True)
        for number, node2 in enumerate(looks, start=1):
            facts = {"node1": node1, "node2": node2}
            lines = [line for host, its in facts.items() if its is not None for line in printed(host, its)]
            (self.folder / f"look{number}").write_text("\n".join(lines) + "\n")
        return self.guard.before_ranks(Controller("7", 0.0), self.layout, 0, lambda: stopping)

    @property
    def asked(self) -> list[str]:
        path = self.folder / "asked"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def excluded(self) -> dict[str, str]:
        return {host: why.reason for host, why in read_excluded(self.guard.paths).hosts.items()}

    def fail(self, reason: str) -> None:
        write_event(self.guard.paths, "launch", reached=0)
        write_event(self.guard.paths, "end", reason=reason, exit_code=1, step=0)


WITHOUT_NODE2 = ["requeue 7", "update JobId=7 ExcNodeList=node2"]


@pytest.fixture
def job(tmp_path: Path, run_yaml: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Job:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("sinfo", SINFO)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "nodes").write_text("node1 node2 node3")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SHARDLINE_PATIENCE", "0")
    monkeypatch.delenv("SHARDLINE_PREFLIGHT", raising=False)
    monkeypatch.setattr(questions, "TRIES", 2)
    monkeypatch.chdir(tmp_path)
    options = argparse.Namespace(run=run_yaml(tmp_path), overrides=[])
    guard = guard_of(load_run(options.run), options)
    layout = Layout(hosts=("node1", "node2"), ranks=(1, 1), cpus=(8, 8), has_gpus=True)
    return Job(guard, tmp_path, layout)


def test_a_host_that_fails_twice_is_excluded_and_the_job_requeued_without_it(job: Job) -> None:
    assert job.start(LOST, LOST) == 75
    assert job.asked == WITHOUT_NODE2
    (reason,) = job.excluded.values()
    assert reason == "preflight: gpus: 0 of 1 GPU is seen; expected: all that Slurm has given to the job"
    events = [(event["event"], event.get("exit_code")) for event in read_events(job.guard.paths)]
    assert events == [("host-excluded", None), ("no-start", 75)]
    assert "excluded     node2 since 2" in status_text(job.guard.paths)


@pytest.mark.parametrize(
    "looks",
    [(WHOLE,), (LOST, WHOLE), (None, WHOLE), (MISTAKEN,), (HUNG, WHOLE), (FULL, WHOLE)],
    ids=["whole", "fails once", "slow", "a check with a mistake", "a driver that hangs for a moment", "a full disk"],
)
def test_what_passes_by_itself_or_is_a_check_s_own_mistake_starts_the_ranks(job: Job, looks: Looks) -> None:
    assert job.start(*looks) is None
    assert (job.asked, job.excluded) == ([], {})


@pytest.mark.parametrize("looks", [(None, None), (HUNG, HUNG), (FULL, FULL)], ids=["silent", "hung", "full"])
def test_a_host_that_stays_silent_hangs_or_cannot_write_is_left(job: Job, looks: Looks) -> None:
    assert (job.start(*looks), job.asked) == (75, WITHOUT_NODE2)


@pytest.mark.parametrize(("look", "stays"), [(None, False), (HUNG, False), (LOST, True)])
def test_a_silent_host_is_left_for_some_hours_and_a_broken_one_until_it_is_forgiven(
    job: Job, monkeypatch: pytest.MonkeyPatch, look: dict[str, Any] | None, stays: bool
) -> None:
    monkeypatch.setattr(excluded_hosts, "SILENT_H", 0.0)
    assert (job.start(look, look), job.asked) == (75, WITHOUT_NODE2)
    assert ("node2" in job.excluded) == stays


def test_a_host_that_is_broken_and_hangs_stays_excluded_and_a_silent_one_is_not_met_again_for_good(job: Job) -> None:
    both = {**WHOLE, "gpus": HUNG["gpus"], "folder": FULL["folder"]}
    for look, is_for_good in ((both, True), (None, False)):
        job.guard.paths.excluded_hosts.unlink(missing_ok=True)
        assert (job.start(look, look), job.start(WHOLE)) == (75, 75)  # the second time it is on the list
        assert (read_excluded(job.guard.paths).hosts["node2"].until is None) == is_for_good


@pytest.mark.parametrize(("fault", "message"), [(LOST, "0 of 1 GPU is seen"), (FULL, "the disk is full")])
def test_what_is_wrong_on_all_hosts_refuses_the_job_and_excludes_none(
    job: Job, fault: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClusterError, match=f"{message}.*SHARDLINE_PREFLIGHT=off"):
        job.start(fault, fault, node1=fault)
    assert (job.asked, job.excluded) == ([], {})
    assert read_events(job.guard.paths)[-1]["exit_code"] == 2


def test_hosts_that_are_all_silent_are_not_at_fault(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    assert job.start(None, None, node1=None) is None
    assert job.asked == [] and "node2 gave no facts: its command ended without an answer" in caplog.text


def test_without_other_hosts_a_broken_one_ends_the_job_and_a_silent_one_is_used(job: Job) -> None:
    (job.folder / "nodes").write_text("node1 node2")
    assert job.start(None, None) is None
    with pytest.raises(
        ClusterError, match=r"gpu has 1 other usable nodes .* it needs 2.*submit again with --exclude=node2"
    ):
        job.start(LOST, LOST)
    assert (job.asked, job.excluded) == ([], {})


def test_a_controller_that_is_away_starts_the_ranks(job: Job) -> None:
    (job.folder / "away").touch()
    assert job.start(LOST, LOST) is None
    assert job.excluded == {}


def test_after_three_requeues_without_a_step_a_broken_host_ends_the_job_and_a_silent_one_is_used(job: Job) -> None:
    for _ in range(3):
        assert job.start(LOST, LOST) == 75
    with pytest.raises(ClusterError, match="requeued 3 times for other hosts without a new step"):
        job.start(LOST, LOST)
    assert job.start(None, None) is None
    assert job.guard.before_ranks(Controller("7", 0.0), job.layout, 9, lambda: False) == 75  # steps were made since


def test_a_new_job_on_an_excluded_host_leaves_it_without_a_look(job: Job) -> None:
    assert job.start(LOST, LOST) == 75
    assert job.start(WHOLE) == 75
    assert job.asked == WITHOUT_NODE2 * 2 and not (job.folder / "looks").exists()


def test_two_failures_that_name_a_host_leave_it_before_and_after_a_start(job: Job) -> None:
    for _ in range(2):
        assert job.guard.after_failure(Controller("7", 0.0), job.layout, 0) is None
        job.fail("the ranks hang; they wait for rank 1 on node2 (process 7) in phase step of step 9")
    assert job.guard.after_failure(Controller("7", 0.0), job.layout, 0) == 75
    assert job.asked == WITHOUT_NODE2
    assert job.excluded["node2"].startswith("2 failures named it; the last one: the ranks hang;")
    one = Layout(hosts=("node3",), ranks=(1,), cpus=(8,), has_gpus=True)
    assert job.guard.after_failure(Controller("7", 0.0), one, 0) is None


def test_a_preflight_that_breaks_or_is_stopped_starts_the_ranks(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert job.start(LOST, LOST, stopping=True) is None
    job.guard.paths.root.mkdir()
    job.guard.paths.excluded_hosts.write_text("{")
    assert job.start(LOST, LOST) is None
    assert "damaged" in caplog.text and "Traceback" not in caplog.text
    job.guard.paths.excluded_hosts.unlink()
    monkeypatch.setattr(Preflight, "ask", lambda *_: 1 / 0)
    assert job.start(LOST, LOST) is None
    assert "ZeroDivisionError" in caplog.text and job.asked == []


def test_no_host_is_asked_where_it_is_switched_off_or_would_cost_more_than_it_finds(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = job.layout
    job.layout = Layout(hosts=("node1",), ranks=(1,), cpus=(8,), has_gpus=False)
    assert job.start(LOST, LOST) is None
    job.layout = gpus
    monkeypatch.setenv("SHARDLINE_PREFLIGHT", "off")
    assert job.start(LOST, LOST) is None
    assert not (job.folder / "looks").exists()


def test_hosts_whose_gpus_are_not_the_job_s_are_not_asked_about_them(job: Job) -> None:
    job.layout = Layout(hosts=("node1", "node2"), ranks=(1, 1), cpus=(8, 8), has_gpus=False)
    assert job.start(LOST) is None


def test_a_forgiven_host_is_used_again(job: Job, shardline: Callable[..., Any]) -> None:
    assert job.start(LOST, LOST) == 75
    shardline("doctor", job.folder / "run.yaml", "--forgive", "node1").assert_refused(
        "--forgive node1: not excluded", "excluded there: node2"
    )
    result = shardline("doctor", job.folder / "run.yaml", "--forgive", "all")
    assert result.code == 0 and "may use again: node2" in result.out
    assert job.start(WHOLE) is None
    assert json.loads(job.guard.paths.excluded_hosts.read_text())["hosts"] == {}
