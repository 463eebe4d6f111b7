"""Which steps must not change the weights, and when to go back to older ones: decisions from all-reduced values alone.

A step is skipped when its loss or gradient norm is not finite or spikes. After several in a row the weights themselves
are suspected: the run goes back to a checkpoint from before them, and the rows of these steps, and of as many before
them, are never taken again, since the same rows would lead to the same weights. Both are bounded.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

from cluster.errors import TrainingError
from training.config import TrainConfig
from training.step.loss import StepStats
from training.train_state import TrainState

USUAL_STEPS = 16  # updates before anything can be called a spike
SPIKE_NATS = 1.0  # a loss closer to the usual one is no spike: near 0 any factor is soon exceeded
STREAK_STEPS = 3  # skipped steps in a row that make a rollback
BARRED = "its rows were barred by a rollback"


@dataclass(frozen=True)
class Guards:
    """The limits of one run."""

    config: TrainConfig

    def judge(self, progress: TrainState, stats: StepStats) -> str | None:
        """Return why a step must not change the weights, or None. The same on every rank, as `stats` are."""
        for name, value in (("loss", stats.loss), ("gradient norm", stats.gradient_norm)):
            if not math.isfinite(value):
                return f"{name} is {value}"
        factor = self.config.loss_spike_factor
        if factor and len(progress.losses) >= USUAL_STEPS:
            usual = statistics.median(progress.losses)
            if stats.loss > max(factor * usual, usual + SPIKE_NATS):
                return f"loss {stats.loss:.4g} is a spike: the usual one is {usual:.4g}"
        factor = self.config.norm_spike_factor
        if factor and len(progress.norms) >= USUAL_STEPS:
            usual = statistics.median(progress.norms)
            if stats.gradient_norm > max(factor * usual, self.config.clip_gradient_norm or 0.0):
                return f"gradient norm {stats.gradient_norm:.4g} is a spike: the usual one is {usual:.4g}"
        return None

    def must_roll_back(self, progress: TrainState) -> bool:
        """Return whether so many steps in a row were skipped that the weights are suspected.

        Steps that an earlier rollback has barred do not count: nothing was tried in them.
        Raises TrainingError if the run has skipped, or gone back, more than its limits allow.
        """
        last = range(progress.steps_done - STREAK_STEPS, progress.steps_done)
        suspected = set(last) <= set(progress.skipped) - set(progress.barred)
        if len(progress.skipped) > self.config.max_skipped_steps:
            raise TrainingError(self.advice(progress, "max_skipped_steps", self.config.max_skipped_steps))
        if suspected and progress.rollbacks >= self.config.max_rollbacks:
            raise TrainingError(self.advice(progress, "max_rollbacks", self.config.max_rollbacks))
        return suspected

    def advice(self, progress: TrainState, key: str, limit: int) -> str:
        tried = sorted(set(progress.skipped) - set(progress.barred)) or list(progress.skipped)
        steps = ", ".join(str(step + 1) for step in tried[-STREAK_STEPS:])
        return (
            f"{len(progress.skipped)} steps were skipped, and the run went back {progress.rollbacks} times; train.{key}"
            f" is {limit}. The last were steps {steps}: look at their documents with `shardline inspect RUN.yaml --step"
            f" {tried[-1] + 1}`; then mend the data, or lower train.learning_rate in a new run, or raise train.{key}"
        )


def rolled_back(restored: TrainState, failed: TrainState) -> TrainState:
    """Return the progress of a checkpoint, with the steps barred that led to the failure of a later one.

    Every step that the later one had skipped stays skipped.
    """
    first = max(restored.steps_done, failed.streak_start - STREAK_STEPS)
    barred = {*failed.barred, *failed.skipped, *range(first, failed.steps_done)} - set(restored.skipped)
    return replace(restored, barred=tuple(sorted(barred)), rollbacks=failed.rollbacks + 1)
