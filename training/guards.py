"""When to skip a step and when to roll back. Decides from all-reduced values alone, so every rank decides the same.

A step is skipped if its loss or gradient norm is not finite, or spikes. Several skips in a row suggest that the weights
themselves went bad: the run rolls back to a checkpoint from before them, and excludes these steps and as many before
them, since the same rows would lead to the same weights. Skips and rollbacks are both limited.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

from cluster.errors import TrainingError
from cluster.wording import count_of
from training.config import TrainConfig
from training.step.loss import StepStats
from training.train_state import TrainState

USUAL_STEPS = 16  # updates needed before anything counts as a spike
SPIKE_NATS = 1.0  # a loss within this of the median is no spike: near 0, noise exceeds any factor
STREAK_STEPS = 3  # skipped steps in a row that cause a rollback
EXCLUDED = "excluded by a rollback"


@dataclass(frozen=True)
class Guards:
    """The guards of one run, with the limits that its configuration sets."""

    config: TrainConfig

    def skip_reason(self, state: TrainState, stats: StepStats) -> str | None:
        """Return why a step must not change the weights; None if it may. `stats` must be all-reduced."""
        for name, value in (("loss", stats.loss), ("gradient norm", stats.gradient_norm)):
            if not math.isfinite(value):
                return f"{name} is {value}"
        factor = self.config.loss_spike_factor
        if factor and len(state.losses) >= USUAL_STEPS:
            usual = statistics.median(state.losses)
            if stats.loss > max(factor * usual, usual + SPIKE_NATS):
                return f"loss {stats.loss:.4g} is a spike: the recent median is {usual:.4g}"
        factor = self.config.norm_spike_factor
        if factor and len(state.norms) >= USUAL_STEPS:
            usual = statistics.median(state.norms)
            if stats.gradient_norm > max(factor * usual, self.config.clip_gradient_norm or 0.0):
                return f"gradient norm {stats.gradient_norm:.4g} is a spike: the recent median is {usual:.4g}"
        return None

    def must_roll_back(self, state: TrainState) -> bool:
        """Return whether the last steps were all skipped, so that the weights are suspected.

        Steps that an earlier rollback excluded do not count: they were never computed.
        Raises TrainingError if the run has skipped steps, or rolled back, more often than its limits allow.
        """
        last = range(state.steps_done - STREAK_STEPS, state.steps_done)
        suspected = set(last) <= set(state.skipped) - set(state.excluded)
        if len(state.skipped) > self.config.max_skipped_steps:
            raise TrainingError(self.advice(state, "max_skipped_steps", self.config.max_skipped_steps))
        if suspected and state.rollbacks >= self.config.max_rollbacks:
            raise TrainingError(self.advice(state, "max_rollbacks", self.config.max_rollbacks))
        return suspected

    def advice(self, state: TrainState, key: str, limit: int) -> str:
        """Return the message for a run that has exceeded the limit `train.KEY`."""
        computed = sorted(set(state.skipped) - set(state.excluded)) or list(state.skipped)
        steps = ", ".join(str(step + 1) for step in computed[-STREAK_STEPS:])
        skips, rollbacks = count_of(len(state.skipped), "step"), count_of(state.rollbacks, "time")
        return (
            f"the run has skipped {skips} and rolled back {rollbacks}, but train.{key}"
            f" is {limit}. Latest: steps {steps}; look at their documents with `shardline inspect RUN.yaml --step"
            f" {computed[-1] + 1}`; then fix the data, lower train.learning_rate in a new run, or raise train.{key}"
        )


def rolled_back(restored: TrainState, failed: TrainState) -> TrainState:
    """Return the restored state with the steps excluded that led to the failure.

    Every step that was skipped before the rollback is excluded too.
    """
    first = max(restored.steps_done, failed.streak_start - STREAK_STEPS)
    excluded = {*failed.excluded, *failed.skipped, *range(first, failed.steps_done)} - set(restored.skipped)
    return replace(restored, excluded=tuple(sorted(excluded)), rollbacks=failed.rollbacks + 1)
