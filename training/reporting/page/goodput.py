"""Where a run's wall time went: how much of it is in steps that are part of the result, and what took the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from training.reporting.run_state import Attempt, RunState

SHORTEST_S = 0.0005


@dataclass(frozen=True, kw_only=True)
class Share:
    """Some of the wall time, its cause, and what it means."""

    key: str
    name: str
    seconds: float
    remark: str


CAUSES = {  # of a share of the wall time: its name, and what it means
    "steps": ("Training", "in steps that were kept"),
    "data": ("Waiting for data", "the batch was not ready when the step was"),
    "saving": ("Held-out loss, saving", "and what else an attempt did between its steps and at its end"),
    "discarded": ("Discarded steps", "taken again after a restart, or rolled back; with the saving in these attempts"),
    "start": ("Start-up", "imports, model, checkpoint, first contact of the ranks"),
    "between": ("Between attempts", "in the queue, stopped, or lost by a kill since the last step that was kept"),
}


def wall_time(state: RunState) -> list[Share]:
    """Return the shares of the time from the first launch to the last sign of the last attempt, by cause.

    They add up to the elapsed time and the first start-up; causes of no time are left out.
    """
    waited, saved = (math.fsum(line.get(key, 0.0) for line in state.lines) for key in ("data_wait_s", "save_s"))
    rests = [(max(0.0, one.seconds - one.kept_s), has_lost_steps(state, one)) for one in state.attempts]
    starting = [sum(attempt.start.get("phases", {}).values()) for attempt in state.attempts]
    gaps = [max(0.0, (after.started - before.last_seen).total_seconds()) for before, after in pairwise(state.attempts)]
    started_again = sum(min(gap, start) for gap, start in zip(gaps, starting[1:], strict=True))
    seconds = {
        "steps": max(0.0, state.kept_s - waited - saved),
        "data": waited,
        "saving": saved + sum(rest for rest, has_lost in rests if not has_lost),
        "discarded": sum(rest for rest, has_lost in rests if has_lost),
        "start": sum(starting[:1]) + started_again,
        "between": sum(gaps) - started_again,
    }
    shares = [Share(key=key, name=name, remark=remark, seconds=seconds[key]) for key, (name, remark) in CAUSES.items()]
    return [share for share in shares if share.seconds > SHORTEST_S]


def goodput(shares: Sequence[Share]) -> float:
    """Return the share of the wall time in steps that were kept."""
    elapsed = math.fsum(share.seconds for share in shares)
    return math.fsum(share.seconds for share in shares if share.key == "steps") / elapsed if elapsed else 0.0


def has_lost_steps(state: RunState, attempt: Attempt) -> bool:
    """Whether an attempt took steps that are not part of the run, as far as its end tells."""
    if attempt.end is None:
        return True
    first, until = attempt.started.isoformat(), str(attempt.end["time"])
    rolled_back = any(event["event"] == "rollback" and first <= event["time"] <= until for event in state.events)
    return rolled_back or attempt.end.get("step", 0) - attempt.start["step"] > attempt.kept_steps
