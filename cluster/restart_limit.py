"""How often a run is restarted: as long as its attempts reach new steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from cluster.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ACTION, TrainingError
from cluster.journal import last_step, read_events, write_event
from cluster.paths import RunPaths

FAILURES = 2  # launches in a row without a new step, after which there is no further one
ENDINGS = ("end", "no-start")


@dataclass(frozen=True)
class Failure:
    """A launch that made no new step: why it ended, and when."""

    reason: str
    at: datetime


def note_launch(paths: RunPaths, *, span_s: float = 0.0) -> None:
    """Record that the run is about to be launched, or raise TrainingError if its last launches made no progress.

    Called by the one process that starts the ranks, before it does. Failures end the run once the first of them lies
    `span_s` back: what passes by itself, as a disk that is away for a minute, ends several launches in seconds. A
    refusal resets the count: a person who has read it makes the next launch.
    """
    reached = last_step(paths.metrics)
    failures = fruitless_launches(read_events(paths), reached)
    if len(failures) >= FAILURES and datetime.now(UTC) - failures[0].at >= timedelta(seconds=span_s):
        message = (
            f"{paths.root}: the last {len(failures)} attempts made no step beyond step {best_step(paths, reached)};"
            f" the last one ended with: {failures[-1].reason}. Not restarted: read the log, fix the cause, then"
            " start it yourself"
        )
        write_event(paths, "no-start", reason="the last attempts made no new step", exit_code=EXIT_USER_ACTION)
        raise TrainingError(message)
    write_event(paths, "launch", reached=reached)


def note_interruption(paths: RunPaths) -> None:
    """Record that a person interrupted the newest launch, unless its ranks recorded their end."""
    events = read_events(paths)
    place = max((place for place, event in enumerate(events) if event["event"] == "launch"), default=0)
    names = {event["event"] for event in events[place:]}
    if names.isdisjoint(ENDINGS):
        name = "end" if "start" in names else "no-start"
        write_event(paths, name, step=last_step(paths.metrics), reason="interrupted", exit_code=EXIT_INTERRUPTED)


def best_step(paths: RunPaths, reached: int) -> int:
    """Return the furthest step that the run ever reached."""
    launches = [event for event in read_events(paths) if event["event"] == "launch"]
    return max([reached, *(int(event["reached"]) for event in launches)])


def fruitless_launches(events: Sequence[dict[str, Any]], reached: int) -> list[Failure]:
    """Return how each launch of the newest series without a new step failed, oldest first.

    `reached` is the run's last step now. A launch that was stopped on purpose (75) or by a person (130) does not count.
    One that got further than all before, found the run done (0), or after which a person had to act (2), ends the
    series. One that recorded no end was killed.
    """
    places = [place for place, event in enumerate(events) if event["event"] == "launch"]
    failures: list[Failure] = []
    best = -1
    for place, following in pairwise([*places, len(events)]):
        best = max(best, events[place]["reached"])
        after = events[following]["reached"] if following < len(events) else reached
        endings = [event for event in events[place:following] if event["event"] in ENDINGS]
        code = endings[-1]["exit_code"] if endings else None
        if after > best or code in (EXIT_DONE, EXIT_USER_ACTION):
            failures = []
        elif code not in (EXIT_STOPPED, EXIT_INTERRUPTED):
            failures.append(failure_of(endings, events[following] if following < len(events) else None))
    return failures


def failure_of(endings: Sequence[dict[str, Any]], following: dict[str, Any] | None) -> Failure:
    """Return the failure of a launch with these endings; one that recorded none was over at the following launch."""
    if endings:
        return Failure(endings[-1]["reason"], datetime.fromisoformat(endings[-1]["time"]))
    at = datetime.now(UTC) if following is None else datetime.fromisoformat(following["time"])
    return Failure("it was killed, or crashed before it could say why", at)
