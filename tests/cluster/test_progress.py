"""Long work reports its progress."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable

import pytest

from cluster.progress import QUIET_S, Progress, StoppedError, Waiting, counted, duration, thread_pool


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def long_ago(progress: Progress, seconds: float) -> Progress:
    """Let a progress have begun so long ago, with a line that is due; what the test itself takes must not matter."""
    progress.began -= seconds
    progress.next_told -= seconds
    return progress


def test_a_terminal_sees_one_line_in_place_with_share_rate_and_time_left() -> None:
    terminal = Terminal()
    with long_ago(Progress("encoding", 4e9, "bytes", terminal), 10_000) as progress:
        progress.advance(1e9)
    assert terminal.getvalue().count("\n") == 0
    assert "encoding: 25% of 4.0 GB, 100.0 kB/s, 8:20 h left" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_a_log_gets_a_line_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), long_ago(Progress("hashing", None, "bytes", io.StringIO()), 10_000) as progress:
        for _ in range(100):
            progress.advance(1e9)
    assert caplog.messages == ["hashing: 1.0 GB, 100.0 kB/s"]


def test_short_work_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    terminal = Terminal()
    with caplog.at_level(logging.INFO), Progress("writing", 3, "rows", terminal) as progress:
        progress.advance(3)
    assert terminal.getvalue() == ""
    assert not caplog.messages


def test_a_line_of_the_log_takes_the_place_of_the_progress() -> None:
    terminal = Terminal()
    root, handler = logging.getLogger(), logging.StreamHandler(terminal)
    root.addHandler(handler)
    try:
        with long_ago(Progress("encoding", 2, "slices", terminal), QUIET_S) as progress:
            progress.advance()
            logging.getLogger("data_prep").warning("a fact")
        assert not handler.filters
    finally:
        root.removeHandler(handler)
    assert "left\r\x1b[Ka fact\n" in terminal.getvalue()


def test_everything_comes_through_and_is_counted() -> None:
    items = list(counted(iter("abc"), [1, 2, 3], "encoding", 6, "slices"))
    assert items == ["a", "b", "c"]


def test_threads_that_nobody_waits_for_end_at_their_next_count() -> None:
    with pytest.raises(KeyboardInterrupt), thread_pool(1) as pool, Progress("hashing", None, "bytes") as progress:
        future = pool.submit(count_on, progress)
        wait_until(lambda: progress.done > 0)  # else it might never begin
        raise KeyboardInterrupt
    assert isinstance(future.exception(timeout=60), StoppedError)


def count_on(progress: Progress) -> None:
    while True:
        progress.advance()
        time.sleep(0.001)


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (59.4, "59 s"), (185, "3:05 min"), (7805, "2:10 h")])
def test_a_time_is_read_at_a_glance(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_what_is_waited_for_is_told_once_in_a_log_and_only_if_it_takes_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO), Waiting("importing", io.StringIO()) as waiting:
        waiting.since -= QUIET_S
        wait_until(lambda: bool(caplog.messages))
        waiting.turn_to("planning")
    assert caplog.messages == ["importing"]


def test_a_terminal_sees_what_is_waited_for_until_it_is_over() -> None:
    terminal = Terminal()
    with Waiting("importing", terminal) as waiting:
        waiting.since -= 7200
        wait_until(lambda: "importing (2:00 h)" in terminal.getvalue())
    assert terminal.getvalue().endswith("\r\x1b[K")


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
