"""The hosts of a Slurm job start their ranks again in place, or leave that to the job."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import ClusterError, DataError
from cluster.journal.records import read_events, write_event
from cluster.network.world import HostPlace
from cluster.paths import RunPaths
from cluster.restart_limit import note_launch
from launch.ranks.slurm_host import Launches, LeftToTheJobError, train_on_slurm_host

pytestmark = pytest.mark.usefixtures("signals_given_back")  # a task of srun takes them over for good


@pytest.fixture
def launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launches:
    """The launches of a run on two hosts, of which the job has noted the first, and which has come to step 3."""
    monkeypatch.setenv("SHARDLINE_RANKS", "node1:1 node2:1")
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()
    note_launch(paths)
    take_steps(paths, 3)
    found = Launches(paths, note=lambda record: record())
    found.begin()
    return found


def take_steps(paths: RunPaths, last: int) -> None:
    paths.metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, last + 1)))


def fail(paths: RunPaths, reason: str) -> None:
    write_event(paths, "end", step=3, reason=reason, exit_code=1)


def launched(paths: RunPaths) -> int:
    return [event["event"] for event in read_events(paths)].count("launch")


def test_ranks_that_made_new_steps_start_again_in_place_and_each_launch_is_recorded(launches: Launches) -> None:
    assert launched(launches.paths) == 1  # the job's
    fail(launches.paths, "rank 1 on node2 was killed by SIGKILL")
    assert launches.may_follow(True)
    launches.begin()
    assert launched(launches.paths) == 2


def test_a_port_that_is_in_use_on_the_first_host_is_a_failure_after_which_there_is_another_port(
    launches: Launches,
) -> None:
    with socket.create_server(("", 0)) as taken:
        place = HostPlace(number=0, count=2, ranks=1, master=("127.0.0.1", taken.getsockname()[1]))
        assert train_on_slurm_host(launches.paths, place, 1, launches.note) == 1


def test_a_task_that_srun_shows_fewer_gpus_than_it_has_ranks_says_what_to_change(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDLINE_LAUNCHER", "srun")
    monkeypatch.setenv("SHARDLINE_DEVICE", "gpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    place = HostPlace(number=0, count=1, ranks=4, master=("127.0.0.1", 1))
    with pytest.raises(ClusterError, match=r"4 ranks of this job, but srun showed its task 1 GPU: .*--gpu-bind"):
        train_on_slurm_host(launches.paths, place, 4, launches.note)


def no_new_step(paths: RunPaths) -> None:
    fail(paths, "it broke")
    note_launch(paths)
    fail(paths, "it broke again")


def one_host_is_named_twice(paths: RunPaths) -> None:
    fail(paths, "rank 1 on node2 was killed by SIGKILL")
    note_launch(paths)
    take_steps(paths, 5)
    fail(paths, "rank 1 on node2 was killed by SIGKILL")


def test_a_host_that_the_job_keeps_though_failures_name_it_is_no_reason_to_ask_it_again(launches: Launches) -> None:
    one_host_is_named_twice(launches.paths)
    note_launch(launches.paths)
    in_next_step = Launches(launches.paths, launches.note)
    in_next_step.begin()
    take_steps(launches.paths, 7)
    fail(launches.paths, "rank 1 on node2 was killed by SIGKILL")
    assert in_next_step.may_follow(True)


def a_stop_is_asked_for(paths: RunPaths) -> None:
    paths.stop_request.touch()


def the_ranks_had_finished(paths: RunPaths) -> None:
    write_event(paths, "end", step=3, reason="done", exit_code=0)  # and one crashed as it ended


def the_ranks_left_it_to_a_person(paths: RunPaths) -> None:
    write_event(paths, "end", step=3, reason="the disk is full", exit_code=2)


def the_journal_is_damaged(paths: RunPaths) -> None:
    paths.attempts.write_text("{}\n{}\n")


@pytest.mark.parametrize(
    "what",
    [
        no_new_step,
        one_host_is_named_twice,
        a_stop_is_asked_for,
        the_ranks_had_finished,
        the_ranks_left_it_to_a_person,
        the_journal_is_damaged,
    ],
)
def test_what_more_than_a_restart_may_be_needed_for_is_left_to_the_job(
    launches: Launches, what: Callable[[RunPaths], None]
) -> None:
    what(launches.paths)
    assert not launches.may_follow(True)


def test_a_host_that_is_gone_is_left_to_the_job(launches: Launches) -> None:
    assert not launches.may_follow(False)


def test_a_check_that_fails_before_a_restart_is_left_to_the_job_which_waits(launches: Launches) -> None:
    def fails(record: Callable[[], None]) -> None:
        raise DataError("manifest.json: there is no prepared data here")

    launches.note = fails
    with pytest.raises(LeftToTheJobError, match="there is no prepared data here"):
        launches.begin()
