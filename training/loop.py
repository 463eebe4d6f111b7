"""The training loop. Read me first."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from cluster.errors import EXIT_DONE, EXIT_STOPPED
from training.batches import MicroBatch, StepBatch
from training.loss import StepStats
from training.plan import Plan
from training.progress import Progress


class Outcome(enum.Enum):
    """How a segment of a run ended; the value is its exit code."""

    FINISHED = EXIT_DONE
    STOPPED = EXIT_STOPPED


class Engine(Protocol):
    def step(
        self, step: int, batches: Sequence[MicroBatch], trained_tokens: int, learning_rate: float
    ) -> StepStats: ...

    def all_reduce_max(self, value: int) -> int: ...


class Batches(Protocol):
    def steps(self, first: int, stop: int) -> Iterator[StepBatch]: ...


class Checkpoints(Protocol):
    def restore(self, engine: Any) -> Progress: ...

    def offer(self, engine: Any, progress: Progress, *, due: bool) -> None: ...

    def complete(self, engine: Any, progress: Progress) -> None: ...


class StopFlag(Protocol):
    def agreed(self, all_reduce_max: Callable[[int], int]) -> bool: ...


class Journal(Protocol):
    def begin(self, first_step: int) -> None: ...

    def step(self, record: dict[str, float]) -> None: ...


def train(
    plan: Plan, engine: Engine, batches: Batches, checkpoints: Checkpoints, stop: StopFlag, journal: Journal
) -> Outcome:
    """Run from the newest checkpoint to the plan's last step, or until the ranks agree to stop. Collective.

    A step's batch depends on nothing but the data, the seed and the step's number, so the number is the position.
    """
    progress = checkpoints.restore(engine)
    journal.begin(progress.steps_done)
    clock = time.monotonic()
    for batch in batches.steps(progress.steps_done, plan.total_steps):
        waited_s = time.monotonic() - clock
        rate = plan.learning_rate(batch.step)
        stats = engine.step(batch.step, batch.micro_batches, batch.trained_tokens, rate)
        progress = progress.after(batch.step)
        now = time.monotonic()
        journal.step(record(plan, batch, stats, rate, seconds=now - clock, waited_s=waited_s))
        clock = now

        stopping = stop.agreed(engine.all_reduce_max)
        checkpoints.offer(engine, progress, due=plan.is_save_due(progress.steps_done))
        if stopping:
            break
    checkpoints.complete(engine, progress)
    return Outcome.FINISHED if progress.steps_done == plan.total_steps else Outcome.STOPPED


def record(
    plan: Plan, batch: StepBatch, stats: StepStats, rate: float, *, seconds: float, waited_s: float
) -> dict[str, float]:
    """Return a step's line of metrics. `step` counts done steps, so the first line says 1."""
    tokens = plan.global_batch_rows * plan.row_tokens
    return {
        "step": batch.step + 1,
        "loss": stats.loss,
        "gradient_norm": stats.gradient_norm,
        "learning_rate": rate,
        "trained_tokens": batch.trained_tokens,
        "tokens_per_s": round(tokens / seconds, 1),
        "step_s": round(seconds, 4),
        "data_wait_s": round(waited_s, 4),
    }
