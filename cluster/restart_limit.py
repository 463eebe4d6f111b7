"""How often a run is restarted: as long as its attempts reach new steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from cluster.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ACTION, TrainingError
from cluster.journal import last_step, read_events, write_event
from cluster.paths import RunPaths

FAILURES = 2  # launches in a row without a new step, after which there is no further one
ENDINGS = ("end", "no-start")


def note_launch(paths: RunPaths) -> None:
    """Record that the run is about to be launched, or raise TrainingError if its last launches made no progress.

    Called by the one process that starts the ranks, before it does. A refusal resets the count: a person who has read
    it makes the next launch.
    """
    reached = last_step(paths.metrics)
    reasons = fruitless_launches(read_events(paths), reached)
    if len(reasons) >= FAILURES:
        message = (
            f"{paths.root}: the last {len(reasons)} attempts made no step beyond step {best_step(paths, reached)};"
            f" the last one ended with: {reasons[-1]}. Not restarted: read the log, fix the cause, then start it"
            " yourself"
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


def fruitless_launches(events: Sequence[dict[str, Any]], reached: int) -> list[str]:
    """Return why each launch of the newest series without a new step ended, oldest first.

    `reached` is the run's last step now. A launch that was stopped on purpose (75) or by a person (130) does not count.
    One that got further than all before, found the run done (0), or after which a person had to act (2), ends the
    series. One that recorded no end was killed.
    """
    places = [place for place, event in enumerate(events) if event["event"] == "launch"]
    reasons: list[str] = []
    best = -1
    for place, following in pairwise([*places, len(events)]):
        best = max(best, events[place]["reached"])
        after = events[following]["reached"] if following < len(events) else reached
        endings = [event for event in events[place:following] if event["event"] in ENDINGS]
        code = endings[-1]["exit_code"] if endings else None
        if after > best or code in (EXIT_DONE, EXIT_USER_ACTION):
            reasons = []
        elif code not in (EXIT_STOPPED, EXIT_INTERRUPTED):
            reasons.append(endings[-1]["reason"] if endings else "it was killed, or crashed before it could say why")
    return reasons
