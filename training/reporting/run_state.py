"""What a run's files say about it: its steps, attempts, held-out losses and events. Needs no torch."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster.disk.run_lock import is_held_by_training
from cluster.errors import DataError
from cluster.journal.records import MEASURED, read_events, read_metrics
from cluster.paths import RunPaths

RECENT_STEPS = 50  # whose median time is the current speed
ENOUGH_STEPS = 20  # of an attempt in which the ranks' times were measured, to compare them


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a run, from start to end; `end` is None if none was written: it is running, or was killed."""

    start: dict[str, Any]
    end: dict[str, Any] | None
    kept: list[dict[str, Any]]
    """The metrics of its steps that are part of the run, not taken again later."""

    @property
    def measured(self) -> list[dict[str, Any]]:
        """Those in which the ranks' times were measured."""
        return [line for line in self.kept if "slowest_rank" in line]

    @property
    def kept_steps(self) -> int:
        return len(self.kept)

    @property
    def kept_s(self) -> float:
        """How long they took."""
        return float(sum(line["step_s"] for line in self.kept))

    @property
    def started(self) -> datetime:
        return datetime.fromisoformat(self.start["time"])

    @property
    def last_seen(self) -> datetime:
        """Its end or, without one, its start plus the time of its kept steps: a lower bound."""
        return datetime.fromisoformat(self.end["time"]) if self.end else self.started + timedelta(seconds=self.kept_s)

    @property
    def seconds(self) -> float:
        """How long it lasted: at least the time of its kept steps, whatever the clock says."""
        return max(self.kept_s, (self.last_seen - self.started).total_seconds())


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a run's files say: length, metrics of each step, attempts, held-out losses by step, and all events."""

    total_steps: int | None
    lines: list[dict[str, Any]]
    attempts: list[Attempt]
    validation: dict[int, float]
    events: list[dict[str, Any]]
    is_held: bool | None = None
    """Whether the training that took the run's lock is alive; None if that cannot be seen from here."""

    @property
    def step(self) -> int:
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def skipped(self) -> int:
        """How many steps changed no weight: skipped by a guard, or excluded by a rollback."""
        return sum("skipped" in line for line in self.lines)

    @property
    def failed_starts(self) -> list[dict[str, Any]]:
        """The attempts that were refused, or failed before their first step."""
        return [event for event in self.events if event["event"] == "no-start"]

    @property
    def failed_start(self) -> dict[str, Any] | None:
        """The newest attempt, if it was refused or failed before its first step."""
        newest = next((event for event in reversed(self.events) if event["event"] in ("start", "no-start")), None)
        return newest if newest and newest["event"] == "no-start" else None

    @property
    def launched_again(self) -> str | None:
        """When the newest launch was, if it has written nothing else yet."""
        return str(self.events[-1]["time"]) if self.events and self.events[-1]["event"] == "launch" else None

    @property
    def is_finished(self) -> bool:
        return self.total_steps is not None and self.step >= self.total_steps

    @property
    def restarts(self) -> int:
        return max(0, len(self.attempts) - 1)

    @property
    def step_s(self) -> float | None:
        """Median seconds of the most recent steps."""
        return statistics.median(line["step_s"] for line in self.lines[-RECENT_STEPS:]) if self.lines else None

    @property
    def paced(self) -> Attempt | None:
        """The newest attempt with enough measured steps; another one may have had other hosts.

        None if a newer one has another number of ranks: its ranks are not those that were measured.
        """
        for attempt in reversed(self.attempts):
            if attempt.start["world_size"] != self.attempts[-1].start["world_size"]:
                return None
            if len(attempt.measured) >= ENOUGH_STEPS:
                return attempt
        return None

    @property
    def kept_s(self) -> float:
        return float(sum(line["step_s"] for line in self.lines))

    @property
    def elapsed_s(self) -> float:
        """Seconds from the first start to when the last attempt was last seen, queues and lost work included.

        Attempts and the waits between them are added up one by one, so that a clock that was set back, or that is
        behind on another host, makes a wait zero and not negative.
        """
        waits = [(after.started - before.last_seen).total_seconds() for before, after in pairwise(self.attempts)]
        return sum(attempt.seconds for attempt in self.attempts) + sum(max(0.0, wait) for wait in waits)


def read_state(paths: RunPaths) -> RunState:
    """Read a run's folder; what does not exist yet is empty."""
    lines = read_metrics(paths.metrics, MEASURED)
    plan, events = read_record(paths.plan), read_events(paths)
    return RunState(
        total_steps=plan["total_steps"] if plan else None,
        lines=lines,
        attempts=paired_attempts(events, lines),
        events=events,
        validation={event["step"]: event["loss"] for event in events if event["event"] == "validation"},
        is_held=is_held_by_training(paths),
    )


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's object, or None if there is no such file. Raises DataError for one that is damaged."""
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: damaged: {error}; remove it, and the command that wrote it writes it again") from None


def paired_attempts(events: list[dict[str, Any]], lines: list[dict[str, Any]]) -> list[Attempt]:
    """Pair each start with its end; a start that is followed by another start has none."""
    starts = [number for number, event in enumerate(events) if event["event"] == "start"]
    attempts = []
    for number, following in pairwise([*starts, len(events)]):
        end = next((event for event in events[number:following] if event["event"] == "end"), None)
        first = events[number]["step"]
        until = min((events[later]["step"] for later in starts if later > number), default=math.inf)
        kept = [line for line in lines if first < line["step"] <= until]
        attempts.append(Attempt(start=events[number], end=end, kept=kept))
    return attempts
