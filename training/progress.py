"""How far a run has come: what a checkpoint carries beside the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Progress:
    """`steps_done` counts the steps whose batches were taken; `skipped` lists those (from 0) that changed no weight.

    A step's rows follow from its number, so a skipped step keeps its place: the next one has the rows it always had.
    """

    steps_done: int = 0
    skipped: tuple[int, ...] = ()
    validation_loss: float | None = None  # the newest

    @property
    def updates(self) -> int:
        """How often the optimizer has changed the weights: Adam's step counter."""
        return self.steps_done - len(self.skipped)

    def after(self, step: int, *, skipped: bool = False) -> Progress:
        """Return the progress after the batch of `step` was taken."""
        return replace(self, steps_done=step + 1, skipped=(*self.skipped, step) if skipped else self.skipped)

    def as_record(self) -> dict[str, Any]:
        """Return the progress as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_record(cls, values: dict[str, Any]) -> Self:
        """Return the progress that JSON values tell."""
        typed: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**typed)
