"""The verdict at the top of a page, and its colour."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from itertools import pairwise

from cluster.wording import count_of
from training.evaluate.verdict import verdict
from training.reporting.run_state import RunState

POINTS = 500  # of the training loss that the verdict looks at: means of so many spans
TONES = {"learnt": "good", "over-fitted": "warn", "too short": "warn", "did not learn": "bad", "diverged": "bad"}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A verdict as the page shows it: in a word, in a sentence, and how good it is."""

    title: str
    text: str
    tone: str


def judged(state: RunState) -> Judged | None:
    """Return the verdict on a run, said to be of the steps so far if it has not ended; None without a step."""
    if not state.lines:
        return None
    found = verdict(training_losses(state), sorted(state.validation.items()))
    title = capitalized(found.kind)
    text = found.text.removeprefix(f"{title}: ")
    if found.kind == "over-fitted" and found.best_step is not None:
        title = f"Over-fitted since step {found.best_step:,}"
    if found.kind == "unknown":
        title = "No verdict"
    text = text.removeprefix(f"{title}: ")
    if not state.is_finished:
        so_far = f"after {state.step:,} of {count_of(state.total_steps or 0, 'step')}"
        if found.kind == "too short":  # not to be said of a run that goes on
            return Judged(title=f"Still falling {so_far}", text=capitalized(f"{text.partition(';')[0]}."), tone="")
        title += f" ({so_far})"
    return Judged(title=title, text=capitalized(text), tone=TONES.get(found.kind, ""))


def capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def training_losses(state: RunState) -> list[tuple[int, float]]:
    """Return the training loss by step; of a long run, the mean of each of POINTS spans at the span's last step."""
    points = [(int(line["step"]), float(line["loss"])) for line in state.lines if math.isfinite(line["loss"])]
    if len(points) <= POINTS:
        return points
    edges = [round(n * len(points) / POINTS) for n in range(POINTS + 1)]
    spans = [points[first:stop] for first, stop in pairwise(edges)]
    return [(span[-1][0], statistics.fmean(loss for _, loss in span)) for span in spans]
