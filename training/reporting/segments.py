"""A run's attempts, one line each: which steps it took, which of them were taken again, and why it ended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cluster.errors import EXIT_DONE, EXIT_STOPPED
from cluster.wording import count_of
from training.reporting.page.goodput import goodput, wall_time
from training.reporting.run_state import Attempt, RunState
from training.reporting.wording import duration

SHOWN = 4
REASON_COLUMNS = 160


def segments(state: RunState) -> list[str]:
    """Return the newest attempts, oldest first; nothing of one that still runs, or was killed and left no word."""
    told = [(attempt.start["time"], attempt_text(attempt)) for attempt in state.attempts if attempt.end]
    told += [(event["time"], f"no step: {reason_of(event)}") for event in state.failed_starts]
    return [f"{moment(time)}  {text}" for time, text in sorted(told)[-SHOWN:]]


def attempt_text(attempt: Attempt) -> str:
    end, first = attempt.end or {}, int(attempt.start["step"])
    taken = int(end.get("step", first)) - first
    lost = max(0, taken - attempt.kept_steps)
    steps = f"steps {first + 1:,} to {first + taken:,}" if taken > 0 else "no step"
    again = f", {lost:,} of them taken again" if lost else ""
    return f"{steps}{again}: {reason_of(end)}"


def reason_of(end: Mapping[str, Any]) -> str:
    """Return why an attempt ended, on one line, with the exit code of a failure."""
    reason = " ".join(str(end["reason"]).split())
    short = reason if len(reason) <= REASON_COLUMNS else f"{reason[: REASON_COLUMNS - 3]}..."
    code = end["exit_code"]
    return short if code in (EXIT_DONE, EXIT_STOPPED) else f"{short} (exit code {code})"


def moment(time: str) -> str:
    """Return a time of the record as a clock and a calendar here have it."""
    return datetime.fromisoformat(time).astimezone().strftime("%m-%d %H:%M")


def goodput_text(state: RunState) -> str:
    """Return which share of the time since the first start is in steps that were kept; nothing before there are any."""
    if not state.lines or not state.attempts:
        return ""
    told = f"{goodput(wall_time(state)):.0%} of {duration(state.elapsed_s)} in steps that count"
    lost = sum(
        max(0, int(attempt.end["step"]) - int(attempt.start["step"]) - attempt.kept_steps)
        for attempt in state.attempts
        if attempt.end
    )
    return f"{told}; {count_of(lost, 'step')} taken again" if lost else told
