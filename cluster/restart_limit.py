"""How often a run may be started again: as long as the starts lead to new steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from cluster.errors import EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ACTION, TrainingError
from cluster.journal import last_step, read_lines, write_event
from cluster.paths import RunPaths

FAILURES = 2  # launches in a row without a new step, after which none would help
ENDINGS = ("end", "no-start")


def note_launch(paths: RunPaths) -> None:
    """Write down that the run is about to be started, or raise TrainingError if starting it has stopped to help.

    For the one process that starts the ranks, before it does. After the refusal the count begins anew: the next
    launch is that of a person who has looked.
    """
    reached = last_step(paths.metrics)
    reasons = fruitless_launches(read_lines(paths.segments), reached)
    if len(reasons) >= FAILURES:
        message = (
            f"{paths.root}: the last {len(reasons)} starts made no step beyond step {best_step(paths, reached)};"
            f" the last one ended with: {reasons[-1]}. Not started again: look at the log, mend the cause, then start"
            " it yourself"
        )
        write_event(paths, "no-start", reason="the last starts made no new step", exit_code=EXIT_USER_ACTION)
        raise TrainingError(message)
    write_event(paths, "launch", reached=reached)


def note_interruption(paths: RunPaths) -> None:
    """Write down that a person has ended the newest launch, if its ranks could not."""
    events = read_lines(paths.segments)
    place = max((place for place, event in enumerate(events) if event["event"] == "launch"), default=0)
    names = {event["event"] for event in events[place:]}
    if names.isdisjoint(ENDINGS):
        name = "end" if "start" in names else "no-start"
        write_event(paths, name, step=last_step(paths.metrics), reason="interrupted", exit_code=EXIT_INTERRUPTED)


def best_step(paths: RunPaths, reached: int) -> int:
    """Return the furthest step that the run ever came to."""
    launches = [event for event in read_lines(paths.segments) if event["event"] == "launch"]
    return max([reached, *(int(event["reached"]) for event in launches)])


def fruitless_launches(events: Sequence[dict[str, Any]], reached: int) -> list[str]:
    """Return why each of the newest launches ended that made no new step, oldest first.

    `reached` is the run's last step now. A launch that was stopped on purpose (75) or by a person (130) says nothing;
    one that a person had to mend something after (2), or that got further than all before, ends the row. One that wrote
    no end was killed.
    """
    places = [place for place, event in enumerate(events) if event["event"] == "launch"]
    reasons: list[str] = []
    best = -1
    for place, following in pairwise([*places, len(events)]):
        best = max(best, events[place]["reached"])
        after = events[following]["reached"] if following < len(events) else reached
        endings = [event for event in events[place:following] if event["event"] in ENDINGS]
        code = endings[-1]["exit_code"] if endings else None
        if after > best or code == EXIT_USER_ACTION:
            reasons = []
        elif code not in (EXIT_STOPPED, EXIT_INTERRUPTED):
            reasons.append(endings[-1]["reason"] if endings else "it was killed, or crashed before it could say why")
    return reasons
