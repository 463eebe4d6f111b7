"""How far a run has come: what a checkpoint carries beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from training.step.loss import StepStats

HISTORY_STEPS = 64  # whose losses and gradient norms tell what is usual


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """`steps_done` counts the steps whose batches came by; `skipped` lists those (from 0) that changed no weight.

    A step's rows follow from its number, so a skipped step keeps its place: the next one has the rows it always had.
    `barred` lists the steps that a rollback has taken out, before they come by again. `losses` and `norms` are those of
    the newest updates, oldest first: with them every decision to skip follows from what a checkpoint holds.
    `validation_loss` is the newest one.
    """

    steps_done: int = 0
    skipped: tuple[int, ...] = ()
    barred: tuple[int, ...] = ()
    rollbacks: int = 0
    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    validation_loss: float | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Return the progress that JSON values, which know no tuples, tell."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)

    def as_record(self) -> dict[str, Any]:
        """Return the progress as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @property
    def updates(self) -> int:
        """How often the optimizer has changed the weights: Adam's step counter."""
        return self.steps_done - len(self.skipped)

    @property
    def streak_start(self) -> int:
        """The first of the skipped steps that end at this moment; `steps_done` if the last step was not skipped."""
        first, skipped = self.steps_done, set(self.skipped)
        while first - 1 in skipped:
            first -= 1
        return first

    def after(self, step: int, stats: StepStats) -> TrainState:
        """Return the progress after the batch of `step` was taken, or skipped."""
        if stats.skipped:
            return replace(self, steps_done=step + 1, skipped=(*self.skipped, step))
        return replace(
            self,
            steps_done=step + 1,
            losses=(*self.losses, stats.loss)[-HISTORY_STEPS:],
            norms=(*self.norms, stats.gradient_norm)[-HISTORY_STEPS:],
        )
