"""The state of a run: what a checkpoint holds besides weights and optimizer state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from training.step.loss import StepStats

HISTORY_STEPS = 64  # of which losses and gradient norms are kept, to tell a spike from what is usual
ON_DISK = {"excluded": "barred"}  # keys of the checkpoint format that differ from the field's name


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """`steps_done` counts all steps so far; `skipped` lists those of them (from 0) that changed no weight.

    A step's rows follow from its number, so skipping one does not shift the rows of the next. `excluded` lists the
    steps (from 0) to skip because of a rollback. `losses` and `norms` are those of the latest updates, oldest first:
    with them, every decision to skip follows from what the checkpoint holds. `validation_loss` is the latest, None
    if it is owed: a wish to stop came before the held-out rows were evaluated, which the next start does first.
    """

    steps_done: int = 0
    skipped: tuple[int, ...] = ()
    excluded: tuple[int, ...] = ()
    rollbacks: int = 0
    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    validation_loss: float | None = None
    validation_owed: bool = False

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Return the state that a checkpoint's JSON values describe."""
        names = {key: name for name, key in ON_DISK.items()}
        values: dict[str, Any] = {names.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)

    def as_record(self) -> dict[str, Any]:
        """Return the state as JSON values, with the keys that checkpoints use."""
        values = asdict(self)
        if not self.validation_owed:
            del values["validation_owed"]  # earlier versions do not know it
        return {ON_DISK.get(k, k): list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @property
    def updates(self) -> int:
        """How often the optimizer has changed the weights: Adam's step counter."""
        return self.steps_done - len(self.skipped)

    @property
    def streak_start(self) -> int:
        """The first of the latest steps skipped in a row; `steps_done` if the last step was not skipped."""
        first, skipped = self.steps_done, set(self.skipped)
        while first - 1 in skipped:
            first -= 1
        return first

    def owing_validation(self) -> TrainState:
        """Return the state before an evaluation that the next start takes over."""
        return replace(self, validation_loss=None, validation_owed=True)

    def validated(self, loss: float | None) -> TrainState:
        """Return the state after an evaluation."""
        return replace(self, validation_loss=loss, validation_owed=False)

    def after(self, step: int, stats: StepStats) -> TrainState:
        """Return the state after `step` was taken or skipped."""
        if stats.skipped:
            return replace(self, steps_done=step + 1, skipped=(*self.skipped, step))
        return replace(
            self,
            steps_done=step + 1,
            losses=(*self.losses, stats.loss)[-HISTORY_STEPS:],
            norms=(*self.norms, stats.gradient_norm)[-HISTORY_STEPS:],
        )
