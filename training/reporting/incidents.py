"""What happened to a run besides its steps: one incident per event, with consecutive skipped steps as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.wording import count_of

SHOWN_ROWS = 8
REMARKS = {  # what a change means beyond another rounding, or where it means nothing
    "train.micro_batch_rows": "with dropout or a router's auxiliary loss, more than rounding",
    "train.deterministic": "on a GPU",
}
ROUTINE = ("launch", "start", "end", "cause", "proof", "validation")  # no incidents, or told as the attempt's end


@dataclass(frozen=True, kw_only=True)
class Incident:
    """One line of the list: when, what, and the steps (from 1) and rows concerned."""

    time: str
    what: str
    steps: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()

    @property
    def steps_text(self) -> str:
        return spans(self.steps)

    @property
    def rows_text(self) -> str:
        more = f" and {len(self.rows) - SHOWN_ROWS:,} more" if len(self.rows) > SHOWN_ROWS else ""
        return ", ".join(map(str, self.rows[:SHOWN_ROWS])) + more


def spans(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text with ranges: "3 to 7, 9"."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in pairs)


def described(event: dict[str, Any]) -> Incident | None:
    """Return the incident that an event describes; None for launches, starts, ends, validations and other routine."""
    match event["event"]:
        case name if name in ROUTINE:
            return None
        case "skip":
            what, steps, rows = f"skipped: {event['reason']}", (event["step"],), tuple(event["rows"])
            return Incident(time=event["time"], what=what, steps=steps, rows=rows)
        case "rollback":
            excluded = spans(event["barred"])  # the key in the file's format
            what = f"rolled back to step {event['step']:,}; excluded from then on: steps {excluded}"
            return Incident(time=event["time"], what=what, steps=(event["failed_step"],))
    return Incident(time=event["time"], what=what_happened(event))


def what_happened(event: Mapping[str, Any]) -> str:
    """Return in words an event that concerns no step of its own."""
    match event["event"]:
        case "no-start":
            return f"no step taken: {event['reason']} (exit code {event['exit_code']})"
        case "host-excluded":
            return f"host {event['host']} excluded: {event['reason']}"
        case "not-requeued":
            return f"job {event['job']} stopped, and Slurm did not put it back into the queue"
        case "length":
            told = changes_text(event["changed"])
            return f"length changed: {told}; the last step is now {event['total_steps']:,}"
        case "rounding":
            is_older = "step" not in event  # of an earlier version
            since = "from here on" if is_older else f"from step {event['step'] + 1:,} on"
            return f"sums round otherwise {since}: {changes_text(event['changed'])}"
        case "straggler":
            where = f"rank {event['rank']} on {event['host']}"
            return f"straggler: the others waited for {where} {event['share']:.0%} of the time"
        case "slow-rank":
            where = f"rank {event['rank']} on {event['host']}"
            what = f"slow: {where} computed slower than the median rank, by {event['excess']:.0%}"
            return f"{what} over {count_of(event['steps'], 'step')}"
    return str(event["event"])  # of a later version: better its name alone than nothing


def changes_text(changed: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(change_text(key, *pair) for key, pair in changed.items())


def change_text(key: str, was: object, now: object) -> str:
    """Return what a setting was and is; of one that changes more than rounding, that too."""
    return f"{key} was {was}, is {now}" + (f" ({REMARKS[key]})" if key in REMARKS else "")


def incidents(events: Iterable[dict[str, Any]]) -> list[Incident]:
    """Return the incidents, oldest first; consecutive steps skipped for the same reason are one."""
    found: list[Incident] = []
    for event in events:
        one = described(event)
        if one is None:
            continue
        if found and one.steps and found[-1].what == one.what and found[-1].steps[-1] + 1 == one.steps[0]:
            found[-1] = replace(found[-1], steps=found[-1].steps + one.steps, rows=found[-1].rows + one.rows)
        else:
            found.append(one)
    return found
