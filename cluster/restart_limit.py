"""How often a run is restarted: as long as its attempts reach new steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from cluster.environment import slurm_job
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ACTION, TrainingError
from cluster.journal.records import last_step, read_events, write_event
from cluster.machine import OUT_OF_MEMORY
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


def attempt_name(paths: RunPaths) -> str:
    """Return the name of the attempt that was launched last: its job, or `local`, and its number.

    Another launcher than ours notes no launch: then the starts are counted, and it is the attempt that begins now.
    """
    names = [event["event"] for event in read_events(paths)]
    number = names.count("launch") or 1 + names.count("start") + names.count("no-start")
    return f"{slurm_job() or 'local'}-{number}"


def note_stop(paths: RunPaths, code: int) -> None:
    """Record that the newest launch was stopped (75) or interrupted (130), unless its ranks recorded their end.

    Without it the launch would count as one that was killed.
    """
    if code in (EXIT_STOPPED, EXIT_INTERRUPTED) and not endings_of(events := newest_launch(paths)):
        write_ending(paths, events, "interrupted" if code == EXIT_INTERRUPTED else "stopped before it had begun", code)


def note_cause(paths: RunPaths, cause: str) -> bool:
    """Record why the newest launch failed, as the process that started its ranks saw it; return whether it is why.

    The ranks that are left can only record that their connection to another one broke. What the watchdog has found out,
    and what a person must act on, stays the reason.
    """
    events = newest_launch(paths)
    endings = endings_of(events)
    if not endings:
        write_ending(paths, events, cause, EXIT_FAILED)
    elif all(ending["exit_code"] == EXIT_FAILED and may_replace(cause, ending) for ending in endings):
        write_event(paths, "cause", reason=cause)
    else:
        return False
    return True


def may_replace(cause: str, ending: Mapping[str, Any]) -> bool:
    """Return whether a cause is nearer to the truth than an ending.

    A verdict of the watchdog stays, but where it waited for a rank that had died of short memory.
    """
    rank = cause.partition(" was killed")[0].split(" (")[0].split(" on ")[0]
    return not ending.get("is_verdict") or (OUT_OF_MEMORY in cause and f"{rank} on " in ending["reason"])


def newest_launch(paths: RunPaths) -> list[dict[str, Any]]:
    """Return the events since the newest launch."""
    events = read_events(paths)
    place = max((place for place, event in enumerate(events) if event["event"] == "launch"), default=0)
    return events[place:]


def code_that_ranks_recorded(paths: RunPaths) -> int | None:
    """Return the exit code that the ranks of the newest launch recorded, 2 before any other; None without any."""
    codes = [int(ending["exit_code"]) for ending in endings_of(newest_launch(paths))]
    if EXIT_USER_ACTION in codes:
        return EXIT_USER_ACTION
    return codes[-1] if codes else None


def endings_of(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] in ENDINGS]


def write_ending(paths: RunPaths, events: Sequence[dict[str, Any]], reason: str, exit_code: int) -> None:
    """Record the end of a launch whose ranks did not."""
    name = "end" if any(event["event"] == "start" for event in events) else "no-start"
    write_event(paths, name, step=last_step(paths.metrics), reason=reason, exit_code=exit_code)


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
        endings = endings_of(events[place:following])
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
