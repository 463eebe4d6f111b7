"""The training loop. Read this first."""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from cluster.errors import EXIT_DONE, EXIT_STOPPED
from training.guards import EXCLUDED, Guards, rolled_back
from training.plan import Plan
from training.step.batches import MicroBatch, StepBatch
from training.step.isolation import IsolationCheck
from training.step.loss import StepStats
from training.step.rank_pace import RankPace
from training.train_state import TrainState


class Outcome(enum.Enum):
    """How an attempt at a run ended; the value is its exit code."""

    FINISHED = EXIT_DONE
    STOPPED = EXIT_STOPPED


BATCHES_A_QUESTION = 8  # of an evaluation, after which the ranks agree whether to stop
SkipReason = Callable[[StepStats], str | None]
"""Returns why a step must not change the weights; None if it may."""


class Engine(Protocol):
    """What a backend must offer: the model, its optimizer and the ranks that share them. Every method is collective."""

    def step(
        self,
        step: int,
        batches: Sequence[MicroBatch],
        trained_tokens: int,
        learning_rate: float,
        skip_reason: SkipReason,
        /,
    ) -> StepStats:
        """Take one optimizer step on this rank's micro batches. The only method that changes weights.

        The loss is the sum over the trained tokens of the global batch divided by `trained_tokens`, their number, for
        any world size and any accumulation. All randomness follows from the run's seed, the step and the micro batch.
        `skip_reason` is called once, on every rank with the same all-reduced loss and gradient norm. If it returns a
        reason, the engine discards the gradients, leaves weights, optimizer state and update counter as they are, and
        returns the reason in `skipped`.
        """
        ...

    def check_isolation(self, examples: Sequence[MicroBatch], /) -> IsolationCheck:
        """Choose how the documents of a row are isolated, and measure that they are. Changes no weight.

        `examples` serve only to estimate the cost. Raises TrainingError if the model cannot be trained on packed rows.
        """
        ...

    def validation_loss(self, batches: Iterable[MicroBatch], /) -> float | None:
        """Return the mean loss of all ranks' trained tokens, in evaluation mode; None if there are none.

        Changes no weight. Every rank must pass the same number of micro batches.
        """
        ...

    def all_reduce_max(self, value: int, /) -> int:
        """Return the largest of all ranks' values."""
        ...

    def largest_and_each(self, value: int, own: int, /) -> tuple[int, Sequence[int]]:
        """Return the largest of all ranks' values, and each rank's `own` number, in one all-reduce."""
        ...


class Batches(Protocol):
    """This rank's share of every global batch. No method communicates."""

    def for_step(self, step: int) -> StepBatch:
        """Return the batch of a step (from 0). It follows from the data, the seed and the step alone."""
        ...

    def steps(self, first: int, stop: int) -> Iterator[StepBatch]:
        """Yield the batches of steps first..stop, read ahead of the engine."""
        ...

    def validation(self) -> Iterable[MicroBatch]:
        """Return the held-out micro batches, the same number on every rank."""
        ...


class Checkpoints(Protocol):
    """Where an engine's weights and optimizer state are kept. Every method is collective."""

    def restore(self, engine: Any, before: int | None = None) -> TrainState:
        """Load the newest good checkpoint into the engine, or the run's first weights if there is none.

        With `before`, checkpoints of that step and later are superseded: neither this call nor a later one loads them.
        """
        ...

    def offer(self, engine: Any, state: TrainState, /, *, due: bool) -> None:
        """Start to save in the background if a checkpoint is due, or was due while the last save was still running."""
        ...

    def complete(self, engine: Any, state: TrainState, /) -> None:
        """Return once a checkpoint of this state is durable. Raises CheckpointError if it cannot be written."""
        ...


class StopFlag(Protocol):
    """Signals, time limits and requests to stop."""

    def agreed(self, all_reduce_max: Callable[[int], int]) -> bool:
        """Return whether any rank was asked to stop. Collective: every rank gets the same answer."""
        ...


class Journal(Protocol):
    """Where the loop reports to: log, metrics, events, heartbeat. No method communicates."""

    def begin(self, first_step: int, total_steps: int, /) -> None:
        """Report that the weights are loaded and steps follow; drop the metrics of steps that are taken again."""
        ...

    def isolation_checked(self, text: str, record: dict[str, Any], /) -> None:
        """Report how documents are isolated, for people and as JSON values."""
        ...

    def phase(self, name: str, step: int, /) -> None:
        """Report what this rank does next, in which step (from 0): the heartbeat by which a hang is located."""
        ...

    def step(self, record: dict[str, Any], /) -> None:
        """Report a step's metrics."""
        ...

    def slow_rank(self, rank: int, excess: float, steps: int, /) -> None:
        """Report a rank whose computing has taken this share longer than the median rank's, over so many steps."""
        ...

    def skip(self, step: int, reason: str, rows: Sequence[int], /) -> None:
        """Report a step (from 1) that changed no weight, with its rows."""
        ...

    def held_out_loss(self, steps_done: int, loss: float, /) -> None:
        """Report the held-out loss after so many steps."""
        ...

    def roll_back(self, to_step: int, failed_step: int, excluded: Sequence[int], /) -> None:
        """Report a rollback; drop the metrics after `to_step`. `excluded` steps (from 0) will be skipped."""
        ...


def train(
    plan: Plan, engine: Engine, batches: Batches, checkpoints: Checkpoints, stop: StopFlag, journal: Journal
) -> Outcome:
    """Train from the newest checkpoint to the plan's last step, or until the ranks agree to stop. Collective.

    A step's batch depends only on the data, the seed and the step number, so the number is the position in the data.
    """
    guards, pace, wants_stop = Guards(plan.config), RankPace(), partial(stop.agreed, engine.all_reduce_max)
    state = checkpoints.restore(engine)
    check = engine.check_isolation(batches.for_step(state.steps_done).micro_batches)
    journal.begin(state.steps_done, plan.total_steps)
    journal.isolation_checked(check.as_text(), check.as_record())
    if state.validation_owed:
        state, _ = evaluate_held_out(state, engine, batches, journal, wants_stop)
        if state.validation_owed:  # asked to stop again
            return Outcome.STOPPED
    while state.steps_done < plan.total_steps:
        clock = ready = time.monotonic()
        save_s = 0.0
        for batch in batches.steps(state.steps_done, plan.total_steps):
            times = {"data_wait_s": time.monotonic() - ready, "save_s": save_s}
            rate = plan.learning_rate(batch.step)
            stats = take_step(batch, rate, engine, guards, state, journal)
            state = state.after(batch.step, stats)
            now = time.monotonic()
            line = metrics_line(plan, batch, stats, rate, {"step_s": now - clock, **times})
            journal.step({**line, **pace.as_record()})
            clock = now

            if guards.must_roll_back(state):
                state = roll_back(state, engine, checkpoints, journal)
                break  # read the batches again from the restored step
            stopping = stop.agreed(partial(pace.all_reduce_max, engine, stats.times.get("layers_s")))
            for slow, excess in pace.slow_ranks().items():
                journal.slow_rank(slow, excess, pace.steps)
            state, spent_s = validate(state, plan, engine, batches, journal, (lambda: True) if stopping else wants_stop)
            clock += spent_s  # it is part of no step, and no wait for data
            due = plan.is_save_due(state.steps_done)
            checkpoints.offer(engine, state, due=due)
            if (stopping or state.validation_owed) and state.steps_done < plan.total_steps:
                journal.phase("save", batch.step)
                checkpoints.complete(engine, state)
                return Outcome.STOPPED
            journal.phase("data", state.steps_done)
            ready = time.monotonic()
            save_s = ready - clock if due else 0.0
    journal.phase("save", state.steps_done)
    checkpoints.complete(engine, state)
    return Outcome.FINISHED


def take_step(
    batch: StepBatch, rate: float, engine: Engine, guards: Guards, state: TrainState, journal: Journal
) -> StepStats:
    """Take an optimizer step, or skip it: at once if a rollback excluded it, else if a guard objects. Collective."""

    def skip_reason(stats: StepStats) -> str | None:
        journal.phase("step", batch.step)
        return guards.skip_reason(state, stats)

    if batch.step in state.excluded:
        stats = StepStats(loss=math.nan, gradient_norm=math.nan, skipped=EXCLUDED)
    else:
        journal.phase("forward-backward", batch.step)
        stats = engine.step(batch.step, batch.micro_batches, batch.trained_tokens, rate, skip_reason)
    if stats.skipped:
        journal.skip(batch.step + 1, stats.skipped, batch.rows)
    return stats


def roll_back(failed: TrainState, engine: Engine, checkpoints: Checkpoints, journal: Journal) -> TrainState:
    """Restore the newest checkpoint from before the skipped steps, and exclude the steps that led there. Collective."""
    journal.phase("load", failed.steps_done - 1)
    state = rolled_back(checkpoints.restore(engine, before=failed.streak_start), failed)
    state = state.validated(state.validation_loss)  # what a checkpoint owes was made up for when this start began
    journal.roll_back(state.steps_done, failed.steps_done, state.excluded)
    return state


def validate(
    state: TrainState, plan: Plan, engine: Engine, batches: Batches, journal: Journal, wants_stop: Callable[[], bool]
) -> tuple[TrainState, float]:
    """Evaluate the held-out rows if that is due; return the state and the seconds it took. Collective.

    A wish to stop comes first, except after the last step, as the last checkpoint must have the loss.
    """
    if not plan.is_validation_due(state.steps_done):
        return state, 0.0
    is_last = state.steps_done == plan.total_steps
    return evaluate_held_out(state, engine, batches, journal, (lambda: False) if is_last else wants_stop)


def evaluate_held_out(
    state: TrainState, engine: Engine, batches: Batches, journal: Journal, wants_stop: Callable[[], bool]
) -> tuple[TrainState, float]:
    """Return the state with the held-out loss, if there are held-out rows, and the seconds it took. Collective.

    If the ranks agree to stop meanwhile, the state owes the loss.
    """
    journal.phase("save", state.steps_done - 1)
    began = time.monotonic()
    is_stopped = False

    def until_stopped() -> Iterator[MicroBatch]:
        nonlocal is_stopped
        for number, batch in enumerate(batches.validation()):
            if number % BATCHES_A_QUESTION == 0 and wants_stop():
                is_stopped = True
                return
            yield batch

    loss = engine.validation_loss(until_stopped())
    if is_stopped:
        return state.owing_validation(), time.monotonic() - began
    if loss is not None:
        journal.held_out_loss(state.steps_done, loss)
    return state.validated(loss), time.monotonic() - began


def metrics_line(
    plan: Plan, batch: StepBatch, stats: StepStats, rate: float, times: Mapping[str, float]
) -> dict[str, Any]:
    """Return a step's line of `metrics.jsonl`. `step` counts the steps done, so the first line says 1.

    `times` are in seconds: `step_s` is from the end of the step before to the end of this one. Of these, the step
    waited `data_wait_s` for its batch, and `save_s` passed before it with the held-out loss and a checkpoint. This
    rank's forward and backward passes took `forward_s` and `backward_s`, waits for other ranks included, and the last
    update before this one `update_s`; `layers_s` is what its decoder layers took in the first forward pass, without
    waits.

    Useful tokens are those that are no padding; `context_tokens` is how long the document of one is, in the mean. A
    step that an earlier rollback excluded was not computed, and has neither.
    """
    tokens_per_s = plan.global_batch_rows * plan.row_tokens / times["step_s"]
    useful, squares = stats.document_tokens, stats.document_squares
    return {
        "step": batch.step + 1,
        "loss": stats.loss,
        "gradient_norm": stats.gradient_norm,
        "learning_rate": rate,
        "trained_tokens": 0 if stats.skipped else batch.trained_tokens,
        "tokens_per_s": round(tokens_per_s, 1),
        **({"useful_tokens_per_s": round(useful / times["step_s"], 1)} if useful else {}),
        **({"context_tokens": round(squares / useful, 1)} if useful else {}),
        **{name: round(seconds, 4) for name, seconds in {**times, **stats.times}.items()},
        **({"auxiliary_loss": stats.auxiliary_loss} if stats.auxiliary_loss is not None else {}),
        **({"skipped": stats.skipped} if stats.skipped else {}),
    }
