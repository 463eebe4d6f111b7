"""Replay a step of a run from the checkpoint before it and compare its loss. The run's folder is not changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.environment import World
from cluster.errors import ConfigError
from cluster.journal.records import read_metrics, world_size_at
from cluster.paths import RunPaths
from training.checkpoints.checkpoint import Checkpoints
from training.loop import train
from training.train_rank import RunRequest, assemble
from training.train_state import TrainState
from training.zero.engine import ZeroEngine, leave_world
from training.zero.stage_choice import rounding_changes


@dataclass(frozen=True)
class ReadOnlyCheckpoints:
    """A run's checkpoints up to a step: they are loaded, and nothing is saved."""

    checkpoints: Checkpoints
    last: int

    def restore(self, engine: ZeroEngine, before: int | None = None) -> TrainState:
        if before is not None:
            raise ConfigError(
                f"the run rolled back at step {before}, and a replay cannot follow a rollback: replay an earlier step,"
                " or one after the next checkpoint"
            )
        return self.checkpoints.restore(engine, last=self.last)

    def offer(self, engine: ZeroEngine, state: TrainState, *, due: bool) -> None:
        """Save nothing."""

    def complete(self, engine: ZeroEngine, state: TrainState) -> None:
        """Save nothing."""


@dataclass
class MetricsOfStep:
    """A journal that keeps the metrics of the latest step, and a stop flag that is raised after a step (from 1)."""

    stop_after: int
    record: dict[str, Any] = field(default_factory=dict)

    def begin(self, first_step: int, total_steps: int) -> None:
        """Do nothing: a replay writes no file."""

    def isolation_checked(self, text: str, record: dict[str, Any]) -> None:
        """Do nothing: the run reported it."""

    def phase(self, name: str, step: int) -> None:
        """Do nothing: a replay has no watchdog."""

    def step(self, record: dict[str, Any]) -> None:
        self.record = record

    def slow_rank(self, rank: int, excess: float, steps: int) -> None:
        """Do nothing: a replay takes one step."""

    def skip(self, step: int, reason: str, rows: Sequence[int]) -> None:
        """Do nothing: the step's metrics say so too."""

    def held_out_loss(self, step: int, loss: float) -> None:
        """Do nothing: the held-out loss is not compared."""

    def roll_back(self, to_step: int, failed_step: int, excluded: Sequence[int]) -> None:
        """Do nothing: ReadOnlyCheckpoints.restore has refused the rollback."""

    def agreed(self, all_reduce_max: Callable[[int], int]) -> bool:
        return bool(self.record["step"] >= self.stop_after)


def replay_rank(request: RunRequest, world: World, step: int) -> list[str]:
    """Replay a step (from 1) as one rank of `world`; return the comparison as lines of text. Collective.

    Raises ConfigError if the run's metrics do not have the step.
    """
    then = recorded(request.paths, step)
    setup = assemble(request, world, mark=lambda name: None)
    metrics = MetricsOfStep(step)
    train(setup.plan, setup.engine, setup.batches, ReadOnlyCheckpoints(setup.checkpoints, step - 1), metrics, metrics)
    leave_world()
    here = {**setup.plan.as_record(), "zero": setup.choice.as_record()}
    other = rounding_changes(setup.before, here) if setup.before else {}
    told = [f"{key} was {was} in the last attempt, is {now}: sums round otherwise" for key, (was, now) in other.items()]
    return [*compared(then, metrics.record, world.size, world_size_at(request.paths, step)), *told]


def recorded(paths: RunPaths, step: int) -> dict[str, Any]:
    """Return the step's line of metrics, or raise ConfigError."""
    lines = {int(line["step"]): line for line in read_metrics(paths.metrics)}
    if step not in lines:
        raise ConfigError(f"--step {step}: {paths.metrics} has steps 1 to {max(lines, default=0)}; give one of them")
    return lines[step]


def compared(then: dict[str, Any], now: dict[str, Any], ranks: int, ranks_then: int) -> list[str]:
    """Return a line for each figure of a step, recorded and replayed; repr shows every bit of a float."""
    lines = []
    for name in ("loss", "gradient_norm"):
        same = repr(then[name]) == repr(now[name])
        verdict = "equal to the bit" if same else f"differs by {now[name] - then[name]:.3g}"
        lines.append(f"step {now['step']}, {name}: {then[name]!r} in metrics.jsonl, {now[name]!r} replayed: {verdict}")
    if "skipped" in now:
        lines.append(f"skipped: {now['skipped']}")
    if ranks != ranks_then:
        lines.append(
            f"replayed on {ranks} ranks, recorded on {ranks_then}: sums in another order may differ in the last bits"
        )
    return lines
