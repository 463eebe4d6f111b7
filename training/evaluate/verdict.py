"""Say in words how a run went, from its training losses and its held-out losses.

The training loss is smoothed over a tenth of the steps, as a single batch says little. A difference of less than
`SMALL` of the loss, or of what the run has learnt so far, counts as none: held-out rows are the same each time, so
their loss has no noise of sampling, but it moves by about that much from one evaluation to the next.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.wording import count_of, is_or_are

SMALL = 0.01  # share of a loss, or of its fall, below which a difference is called none
SMOOTHED_SHARE = 0.1  # of the steps, over which the training loss is averaged
LAST_SHARE = 0.2  # of the steps: a held-out loss that falls within them is still falling
FEW_STEPS = 100  # fewer teach a model little, whatever the learning rate

Points = Sequence[tuple[int, float]]
Kind = Literal["learnt", "over-fitted", "too short", "did not learn", "diverged", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a run. `text` is a sentence or two for people; `best_step` has the lowest held-out loss."""

    kind: Kind
    text: str
    best_step: int | None


def verdict(train: Points, held_out: Points) -> Verdict:
    """Judge a run by its training loss and held-out loss, each as (steps done, nats per token).

    Losses that are not finite, as of skipped steps, are left out. With fewer than two held-out losses, only a training
    loss that did not fall can be judged, and the kind is "unknown" otherwise.
    """
    train, held_out = in_order(train), in_order(held_out)
    if len(held_out) < 2:
        return without_held_out(train, held_out)
    best_step, best = min(held_out, key=lambda point: point[1])
    (first_step, first), (last_step, last) = held_out[0], held_out[-1]
    start = max([first, *(loss for _, loss in smoothed(train)[:1])])
    small = SMALL * max(best, start - best)
    if last - best > small:
        return turned(train, held_out, best_step)
    if start - best <= SMALL * start:
        return Verdict(kind="did not learn", text=not_learnt_text(start, best, last_step), best_step=best_step)
    fell = f"the held-out loss fell from {first:.3f} (step {first_step:,}) to {last:.3f} (step {last_step:,})"
    border = last_step * (1 - LAST_SHARE)
    recent = min([at(held_out, border), *(loss for step, loss in held_out if step <= border)]) - last
    if recent > small:
        return Verdict(
            kind="too short",
            text=f"Too short: {fell} and is still falling, by {recent:.3f} in the last {LAST_SHARE:.0%} of the steps;"
            " train for longer, or at a higher learning rate.",
            best_step=best_step,
        )
    risen = f"; it was lowest at step {best_step:,} ({best:.3f})" if last > best * (1 + SMALL) else ""
    return Verdict(kind="learnt", text=f"Learnt: {fell} and has levelled off{risen}.", best_step=best_step)


def turned(train: Points, held_out: Points, best_step: int) -> Verdict:
    """Judge a run whose held-out loss has risen again after `best_step`."""
    (last_step, last), best = held_out[-1], dict(held_out)[best_step]
    rose = f"the held-out loss was lowest at step {best_step:,} ({best:.3f}) and has risen to {last:.3f}"
    curve = smoothed(train)
    before, now = at(curve, best_step), at(curve, last_step)
    if curve and now > before * (1 + SMALL):
        return Verdict(
            kind="diverged",
            text=f"Diverged: {rose} at step {last_step:,}, and the training loss rose with it, from {before:.3f} to"
            f" {now:.3f}; lower the learning rate, or use the checkpoint of step {best_step:,}.",
            best_step=best_step,
        )
    while_falling = f", while the training loss went from {before:.3f} to {now:.3f}" if curve else ""
    return Verdict(
        kind="over-fitted",
        text=f"Over-fitted since step {best_step:,}: {rose} at step {last_step:,}{while_falling}; use the checkpoint of"
        f" step {best_step:,}, or train for fewer steps or on more data.",
        best_step=best_step,
    )


def without_held_out(train: Points, held_out: Points) -> Verdict:
    """Judge a run that has at most one held-out loss."""
    best_step = held_out[0][0] if held_out else None
    curve = smoothed(train)
    if len(curve) > 1 and curve[0][1] - curve[-1][1] <= SMALL * curve[0][1]:
        (_, start), (step, loss) = curve[0], curve[-1]
        return Verdict(kind="did not learn", text=not_learnt_text(start, loss, step), best_step=best_step)
    found = "a single held-out loss" if held_out else "no held-out loss"
    return Verdict(
        kind="unknown",
        text=f"Over-fitting cannot be judged: {found} was measured; it takes held-out rows, train.validation_rows above"
        " 0, and a smaller train.validate_every_steps.",
        best_step=best_step,
    )


def not_learnt_text(start: float, end: float, steps: int) -> str:
    """Return what a run without progress is told."""
    advice = (
        f"{count_of(steps, 'step')} {is_or_are(steps)} few: train for longer"
        if steps < FEW_STEPS
        else "look at the data with `prepare`"
    )
    return f"Did not learn: the loss went from {start:.3f} to {end:.3f}; {advice}, or raise the learning rate."


def in_order(points: Points) -> list[tuple[int, float]]:
    """Return the finite points by step; of a step that was taken twice, the last."""
    return sorted({step: loss for step, loss in points if math.isfinite(loss)}.items())


def smoothed(train: Points) -> list[tuple[int, float]]:
    """Return the mean training loss of each window, at the window's last step."""
    width = max(1, round(len(train) * SMOOTHED_SHARE))
    windows = [train[end - width : end] for end in range(width, len(train) + 1)]
    return [(window[-1][0], statistics.fmean(loss for _, loss in window)) for window in windows]


def at(curve: Points, step: float) -> float:
    """Return the loss at a step, on the line between the two points around it; beyond the ends, the nearest one."""
    if not curve:
        return math.nan
    before = [point for point in curve if point[0] <= step]
    after = [point for point in curve if point[0] > step]
    if not before or not after:
        return (before or after)[-1 if before else 0][1]
    (left, low), (right, high) = before[-1], after[0]
    return low + (high - low) * (step - left) / (right - left)
