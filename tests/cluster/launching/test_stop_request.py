"""One wish to stop, all ranks agree."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from cluster.launching.stop_request import MARGIN_S, StopFlag

pytestmark = pytest.mark.usefixtures("signals_given_back")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_is_remembered_and_read_at_the_next_agreement(tmp_path: Path, number: signal.Signals) -> None:
    flag = StopFlag(tmp_path / "STOP")
    flag.install()
    assert not flag.agreed(lambda value: value)
    os.kill(os.getpid(), number)
    assert flag.agreed(lambda value: value)
    assert flag.reason == f"signal {number.name}"


def test_a_stop_file_is_a_wish_to_stop(tmp_path: Path) -> None:
    flag = StopFlag(tmp_path / "STOP")
    (tmp_path / "STOP").touch()
    assert flag.agreed(lambda value: value)


def test_a_rank_that_does_not_look_for_the_file_stops_with_the_one_that_does(tmp_path: Path) -> None:
    first, other = StopFlag(tmp_path / "STOP"), StopFlag(tmp_path / "STOP", looks_for_file=False)
    (tmp_path / "STOP").touch()
    assert not other.agreed(lambda value: value)
    assert other.agreed(lambda value: max(value, int(first.agreed(lambda own: own))))


def test_a_rank_stops_because_another_was_asked_to(tmp_path: Path) -> None:
    flag = StopFlag(tmp_path / "STOP")
    assert flag.agreed(lambda value: 1)
    assert flag.reason == "another rank was asked to stop"
    flag = StopFlag(tmp_path / "STOP")
    assert flag.agreed(lambda value: 1 + signal.SIGUSR2)
    assert flag.reason == "signal SIGUSR2"


def test_a_second_interrupt_ends_the_process_at_once(tmp_path: Path) -> None:
    flag = StopFlag(tmp_path / "STOP")
    flag.install()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_the_end_of_the_allocation_is_a_wish_to_stop_while_a_step_and_a_save_still_fit(tmp_path: Path) -> None:
    flag = StopFlag(tmp_path / "STOP", ends_at=time.time() + 200)
    begun = time.monotonic()
    asked = [begun + second for second in (0, 10, 20, 60, 70, 80, 90)]  # one step took 40 s: it was saved
    reasons = [flag.out_of_time(moment) for moment in asked]
    assert reasons[:-1] == [None] * 6  # 80 + 2 x 40 + 30 s are less than 200 s
    assert str(reasons[-1]).startswith("the allocation ends in 1")
    assert "a step and a save may need 110 s" in str(reasons[-1])


def test_a_save_that_takes_longer_than_a_step_is_left_the_time_for_itself_and_for_one_before_it(tmp_path: Path) -> None:
    flag = StopFlag(tmp_path / "STOP", ends_at=time.time() + 400)
    flag.save_s = lambda: 100.0
    begun = time.monotonic()
    reasons = [flag.out_of_time(begun + second) for second in (0, 10, 140, 160)]
    assert reasons[:2] == [None, None] and "a step and a save may need 490 s" in str(reasons[2])  # 2 x (130 + 100) + 30


def test_a_job_that_was_suspended_keeps_its_time(tmp_path: Path) -> None:
    flag = StopFlag(tmp_path / "STOP", ends_at=time.time() + 200)
    flag.install()
    begun = time.monotonic()
    assert [flag.out_of_time(begun + second) for second in (0, 10)] == [None, None]
    os.kill(os.getpid(), signal.SIGCONT)
    assert [flag.out_of_time(begun + 10_000 + second) for second in (0, 10, 20)] == [None] * 3  # 9,980 s were no step
    assert flag.out_of_time(begun + 10_160) is not None


def test_an_allocation_that_is_about_to_end_stops_the_ranks_at_their_next_step(tmp_path: Path) -> None:
    flag = StopFlag(tmp_path / "STOP", ends_at=time.time() + MARGIN_S - 1)
    assert flag.agreed(lambda value: value)
    assert "the allocation ends in" in str(flag.reason)
