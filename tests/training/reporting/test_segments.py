"""A run's attempts, one line each."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.paths import RunPaths
from tests.training.reporting.test_status import end, start, write_run
from training.reporting.run_state import read_state
from training.reporting.segments import goodput_text, segments

REFUSED = {"event": "no-start", "time": "2026-11-20T12:00:25+00:00", "step": 9, "reason": "no\nroom", "exit_code": 2}


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    """A run whose first attempt was killed without a word, and whose second one lost four steps."""
    killed, failed = start(0, 0), [start(10, 5), end(20, 14, "rank 1 on a2 was killed by SIGKILL", 1)]
    return write_run(
        RunPaths(tmp_path / "run"), [killed, *failed, REFUSED, start(30, 10), end(40, 20, "done", 0)], steps=20
    )


def test_each_attempt_says_its_steps_those_that_were_taken_again_and_why_it_ended(run: RunPaths) -> None:
    lines = [line.split("  ", 1)[1] for line in segments(read_state(run))]
    assert lines == [
        "steps 6 to 14, 4 of them taken again: rank 1 on a2 was killed by SIGKILL (exit code 1)",
        "no step: no room (exit code 2)",
        "steps 11 to 20: done",
    ]


def test_only_the_newest_attempts_are_shown_and_a_long_reason_is_cut(tmp_path: Path) -> None:
    events = [
        event for n in range(9) for event in (start(10 * n, 2 * n), end(10 * n + 5, 2 * n + 2, f"{n} {'x' * 999}", 75))
    ]
    lines = segments(read_state(write_run(RunPaths(tmp_path / "run"), events, steps=18)))
    assert [line.split(": ", 1)[1][:2] for line in lines] == ["5 ", "6 ", "7 ", "8 "]
    assert all(len(line) < 220 and line.endswith("...") for line in lines)


def test_goodput_counts_the_steps_that_were_kept(run: RunPaths, tmp_path: Path) -> None:
    assert goodput_text(read_state(run)) == "50% of 40 s in steps that count; 4 steps taken again"
    assert goodput_text(read_state(RunPaths(tmp_path / "none"))) == ""
