"""A run is started again as long as the starts lead to new steps."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import EXIT_INTERRUPTED, EXIT_STOPPED, TrainingError
from cluster.journal.records import read_events, write_event
from cluster.machine import OUT_OF_MEMORY
from cluster.paths import RunPaths
from cluster.restart_limit import note_cause, note_launch, note_stop


def launch(paths: RunPaths, reached: int, code: int | None = None, reason: str = "OSError: gone") -> None:
    """Start a run that comes to a step and ends with an exit code, or is killed."""
    note_launch(paths)
    if reached:
        paths.metrics.write_text(json.dumps({"step": reached}) + "\n")
    if code is not None:
        write_event(paths, "end" if reached else "no-start", step=reached, reason=reason, exit_code=code)


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "run")


def test_a_crash_at_the_same_step_is_tried_three_times_and_then_told_on_one_line(paths: RunPaths) -> None:
    for _ in range(3):
        launch(paths, reached=36, code=1, reason="ValueError: bad token")
    with pytest.raises(TrainingError) as caught:
        note_launch(paths)
    assert str(caught.value) == (
        f"{paths.root}: the last 2 attempts made no step beyond step 36; the last one ended with: ValueError: bad token"
        ". Not restarted: read the log, fix the cause, then start it yourself"
    )


def test_starts_that_were_killed_before_their_first_step_are_counted_too(paths: RunPaths) -> None:
    launch(paths, reached=0)
    launch(paths, reached=0)
    with pytest.raises(
        TrainingError, match="no step beyond step 0; the last one ended with: it was killed, or crashed"
    ):
        note_launch(paths)


def test_failures_within_moments_of_each_other_do_not_end_a_run_that_a_disk_may_have_ended(paths: RunPaths) -> None:
    for _ in range(5):
        note_launch(paths, span_s=120)
        write_event(paths, "no-start", reason="OSError: gone", exit_code=1)
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    events = [{**event, "time": an_hour_ago.isoformat()} for event in read_events(paths)]
    paths.attempts.write_text("".join(json.dumps(event) + "\n" for event in events))
    with pytest.raises(TrainingError, match="the last 5 attempts made no step beyond step 0"):
        note_launch(paths, span_s=120)


def test_a_start_after_the_refusal_is_that_of_a_person_who_has_looked(paths: RunPaths) -> None:
    launch(paths, reached=0, code=1)
    launch(paths, reached=0, code=1)
    with pytest.raises(TrainingError):
        note_launch(paths)
    launch(paths, reached=0, code=1)
    note_launch(paths)


@pytest.mark.parametrize(
    "endings",
    [
        [(10, 1), (12, 1), (14, None), (15, 1)],  # each got further
        [(10, 1), (10, 1), (11, 1), (11, 1)],  # at least every second
        [(0, 75), (0, 75), (0, 75), (0, 75)],  # sent back to the queue before the first step
        [(0, 1), (0, 2), (0, 1), (0, 2)],  # a person fixes one thing after the other
        [(10, 0), (10, 0), (10, 0), (10, 0)],  # it was done already
    ],
)
def test_a_run_that_comes_on_or_was_stopped_on_purpose_is_started_again(
    paths: RunPaths, endings: list[tuple[Any, int | None]]
) -> None:
    for reached, code in endings:
        launch(paths, reached, code)
    note_launch(paths)
    assert [event["event"] for event in read_events(paths)].count("launch") == len(endings) + 1


def test_a_stop_on_purpose_does_not_hide_the_failures_around_it(paths: RunPaths) -> None:
    for code in (1, 75, 1):
        launch(paths, reached=0, code=code)
    with pytest.raises(TrainingError):
        note_launch(paths)


@pytest.mark.parametrize("code", [EXIT_STOPPED, EXIT_INTERRUPTED])
def test_starts_that_were_stopped_before_they_had_begun_are_not_held_against_the_run(
    paths: RunPaths, code: int
) -> None:
    for _ in range(4):
        launch(paths, reached=0)
        note_stop(paths, code)
    assert [event["exit_code"] for event in read_events(paths) if event["event"] == "no-start"] == [code] * 4


def test_what_the_ranks_said_of_their_end_is_not_said_again(paths: RunPaths) -> None:
    launch(paths, reached=3, code=75, reason="signal SIGINT")
    note_stop(paths, EXIT_INTERRUPTED)
    assert [event["event"] for event in read_events(paths)] == ["launch", "end"]


def test_attempts_that_an_earlier_version_recorded_count_before_those_of_this_one(paths: RunPaths) -> None:
    launch(paths, reached=0, code=1, reason="OSError: old")
    paths.attempts.rename(paths.root / "segments.jsonl")
    launch(paths, reached=0, code=1, reason="OSError: new")
    assert [event.get("reason") for event in read_events(paths)] == [None, "OSError: old", None, "OSError: new"]
    with pytest.raises(TrainingError, match=r"the last 2 attempts made no step beyond step 0; .*: OSError: new"):
        note_launch(paths)


KILLED = "rank 1 on node2 was killed by SIGKILL"


def test_a_rank_that_was_killed_is_the_reason_and_not_what_the_others_saw_of_it(paths: RunPaths) -> None:
    launch(paths, reached=3, code=1, reason="RuntimeError: gloo: connection closed by peer")
    note_cause(paths, KILLED)
    launch(paths, reached=5, code=1, reason="ValueError: bad token")
    assert [e["reason"] for e in read_events(paths) if e["event"] == "end"] == [KILLED, "ValueError: bad token"]


def test_the_end_of_ranks_that_could_record_none_is_recorded_for_them(paths: RunPaths) -> None:
    launch(paths, reached=0)
    assert note_cause(paths, KILLED)
    assert [(e["event"], e.get("reason")) for e in read_events(paths)] == [("launch", None), ("no-start", KILLED)]


def test_short_memory_is_the_reason_though_the_watchdog_saw_a_hang_first(paths: RunPaths) -> None:
    note_launch(paths)
    hang = "the ranks hang; they wait for rank 9 on node2 (process 3) in phase step of step 4 for 6 s"
    write_event(paths, "end", reason=hang, step=3, exit_code=1, is_verdict=True)
    assert not note_cause(paths, f"rank 1 on node1 was killed{OUT_OF_MEMORY}")
    assert note_cause(paths, f"rank 9 on node2 was killed{OUT_OF_MEMORY}")


@pytest.mark.parametrize("facts", [{"exit_code": 2}, {"exit_code": 75}, {"exit_code": 1, "is_verdict": True}])
def test_a_reason_that_does_not_follow_from_the_killed_rank_stays(paths: RunPaths, facts: dict[str, Any]) -> None:
    note_launch(paths)
    write_event(paths, "end", reason="its own", step=1, **facts)
    assert not note_cause(paths, KILLED)
    assert [event.get("reason") for event in read_events(paths)] == [None, "its own"]
