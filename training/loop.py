"""The training loop. Read me first."""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from cluster.errors import EXIT_DONE, EXIT_STOPPED
from training.guards import BARRED, Guards, rolled_back
from training.plan import Plan
from training.step.batches import MicroBatch, StepBatch
from training.step.isolation import Proof
from training.step.loss import StepStats
from training.train_state import TrainState


class Outcome(enum.Enum):
    """How a segment of a run ended; the value is its exit code."""

    FINISHED = EXIT_DONE
    STOPPED = EXIT_STOPPED


Judge = Callable[[StepStats], str | None]


class Engine(Protocol):
    def step(
        self, step: int, batches: Sequence[MicroBatch], trained_tokens: int, learning_rate: float, judge: Judge
    ) -> StepStats: ...

    def prove(self, examples: Sequence[MicroBatch]) -> Proof: ...

    def validation_loss(self, batches: Iterable[MicroBatch]) -> float | None: ...

    def all_reduce_max(self, value: int) -> int: ...


class Batches(Protocol):
    def for_step(self, step: int) -> StepBatch: ...

    def steps(self, first: int, stop: int) -> Iterator[StepBatch]: ...

    def validation(self) -> Iterable[MicroBatch]: ...


class Checkpoints(Protocol):
    def restore(self, engine: Any, before: int | None = None) -> TrainState: ...

    def offer(self, engine: Any, progress: TrainState, *, due: bool) -> None: ...

    def complete(self, engine: Any, progress: TrainState) -> None: ...


class StopFlag(Protocol):
    def agreed(self, all_reduce_max: Callable[[int], int]) -> bool: ...


class Journal(Protocol):
    def begin(self, first_step: int, total_steps: int) -> None: ...

    def proved(self, text: str, metrics_line: dict[str, Any]) -> None: ...

    def phase(self, name: str, step: int) -> None: ...

    def step(self, metrics_line: dict[str, Any]) -> None: ...

    def skip(self, step: int, reason: str, rows: Sequence[int]) -> None: ...

    def held_out_loss(self, step: int, loss: float) -> None: ...

    def roll_back(self, to_step: int, failed_step: int, barred: Sequence[int]) -> None: ...


def train(
    plan: Plan, engine: Engine, batches: Batches, checkpoints: Checkpoints, stop: StopFlag, journal: Journal
) -> Outcome:
    """Run from the newest checkpoint to the plan's last step, or until the ranks agree to stop. Collective.

    A step's batch depends on nothing but the data, the seed and the step's number, so the number is the position.
    """
    guards = Guards(plan.config)
    progress = checkpoints.restore(engine)
    proof = engine.prove(batches.for_step(progress.steps_done).micro_batches)
    journal.begin(progress.steps_done, plan.total_steps)
    journal.proved(proof.as_text(), proof.as_record())
    while progress.steps_done < plan.total_steps:
        clock = time.monotonic()
        for batch in batches.steps(progress.steps_done, plan.total_steps):
            waited_s = time.monotonic() - clock
            rate = plan.learning_rate(batch.step)
            stats = take_step(batch, rate, engine, guards, progress, journal)
            progress = progress.after(batch.step, stats)
            now = time.monotonic()
            journal.step(metrics_line(plan, batch, stats, rate, seconds=now - clock, waited_s=waited_s))
            clock = now

            if guards.must_roll_back(progress):
                journal.phase("load", batch.step)
                failed = progress
                progress = rolled_back(checkpoints.restore(engine, before=failed.streak_start), failed)
                journal.roll_back(progress.steps_done, failed.steps_done, progress.barred)
                break
            stopping = stop.agreed(engine.all_reduce_max)
            due = plan.is_save_due(progress.steps_done)
            if due or stopping:
                journal.phase("save", batch.step)
            if due:
                progress = evaluate_held_out(progress, engine, batches, journal)
            checkpoints.offer(engine, progress, due=due)
            if stopping and progress.steps_done < plan.total_steps:
                checkpoints.complete(engine, progress)
                return Outcome.STOPPED
            journal.phase("data", progress.steps_done)
    journal.phase("save", progress.steps_done)
    checkpoints.complete(engine, progress)
    return Outcome.FINISHED


def take_step(
    batch: StepBatch, rate: float, engine: Engine, guards: Guards, progress: TrainState, journal: Journal
) -> StepStats:
    """Let the engine take a step, or skip it: before the work if a rollback has barred it, after if a guard objects."""

    def judge(stats: StepStats) -> str | None:
        journal.phase("step", batch.step)
        return guards.judge(progress, stats)

    if batch.step in progress.barred:
        stats = StepStats(loss=math.nan, gradient_norm=math.nan, skipped=BARRED)
    else:
        journal.phase("forward-backward", batch.step)
        stats = engine.step(batch.step, batch.micro_batches, batch.trained_tokens, rate, judge)
    if stats.skipped:
        journal.skip(batch.step + 1, stats.skipped, batch.rows)
    return stats


def evaluate_held_out(progress: TrainState, engine: Engine, batches: Batches, journal: Journal) -> TrainState:
    """Score the held-out rows, if there are some, before a checkpoint carries the score."""
    loss = engine.validation_loss(batches.validation())
    if loss is not None:
        journal.held_out_loss(progress.steps_done, loss)
    return replace(progress, validation_loss=loss)


def metrics_line(
    plan: Plan, batch: StepBatch, stats: StepStats, rate: float, *, seconds: float, waited_s: float
) -> dict[str, Any]:
    """Return a step's line of metrics. `step` counts done steps, so the first line says 1."""
    tokens = plan.global_batch_rows * plan.row_tokens
    return {
        "step": batch.step + 1,
        "loss": stats.loss,
        "gradient_norm": stats.gradient_norm,
        "learning_rate": rate,
        "trained_tokens": 0 if stats.skipped else batch.trained_tokens,
        "tokens_per_s": round(tokens / seconds, 1),
        "step_s": round(seconds, 4),
        "data_wait_s": round(waited_s, 4),
        **({"auxiliary_loss": stats.auxiliary_loss} if stats.auxiliary_loss is not None else {}),
        **({"skipped": stats.skipped} if stats.skipped else {}),
    }
