"""What a study has found, read from its journal: its trials, the best one, the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.tuning.space import Space, spelled

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "unfinished"}
WIDEST_REASON = 100


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One trial. `loss` is its last held-out loss, after `step` steps; `losses` are all, by step."""

    number: int
    state: str
    loss: float | None
    step: int
    values: dict[str, Any]
    reason: str
    losses: dict[int, float]


def results_of(study: Any, space: Space) -> list[TrialResult]:
    """Return the trials that were begun, in their order."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in STATES]
    return [
        TrialResult(
            number=trial.number,
            state=STATES[trial.state.name],
            loss=trial.intermediate_values[trial.last_step] if trial.last_step is not None else None,
            step=trial.last_step or 0,
            values=space.values_of(trial.params),
            reason=str(trial.user_attrs.get("reason", "")),
            losses=dict(trial.intermediate_values),
        )
        for trial in trials
    ]


def best_of(results: Sequence[TrialResult]) -> TrialResult | None:
    """Return the complete trial with the lowest last held-out loss; the earlier one of two equals."""
    complete = [result for result in results if result.state == "complete" and result.loss is not None]
    return min(complete, key=lambda result: (result.loss or 0.0, result.number), default=None)


def table(results: Sequence[TrialResult], space: Space) -> str:
    """Return all trials as a table of text."""
    best = best_of(results)
    rows = [["trial", "state", "held-out loss", "step", *space.parameters, ""]]
    for result in results:
        loss = "" if result.loss is None or math.isnan(result.loss) else f"{result.loss:.4f}"
        values = [spelled(result.values[key]) if key in result.values else "" for key in space.parameters]
        note = "best" if result is best else shortened(result.reason) if result.state == "failed" else ""
        rows.append([str(result.number), result.state, loss, str(result.step), *values, note])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def shortened(text: str) -> str:
    return text if len(text) <= WIDEST_REASON else f"{text[:WIDEST_REASON]}..."
