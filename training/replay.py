"""Take a step of a run once more, from the checkpoint before it, and compare its loss; the run is not touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.environment import World
from cluster.errors import ConfigError
from cluster.journal import read_lines, world_size_at
from cluster.paths import RunPaths
from training.checkpoints.checkpoint import Checkpoints
from training.loop import train
from training.train_rank import RunRequest, assemble
from training.train_state import TrainState
from training.zero.engine import ZeroEngine, leave_world


@dataclass(frozen=True)
class Unsaved:
    """The checkpoints of a run before some step, to read only."""

    checkpoints: Checkpoints
    last: int

    def restore(self, engine: ZeroEngine, before: int | None = None) -> TrainState:
        if before is not None:
            raise ConfigError(
                f"the run went back to an older checkpoint at step {before}; a replay cannot follow it through that:"
                " replay a step before, or one after the next checkpoint"
            )
        return self.checkpoints.restore(engine, last=self.last)

    def offer(self, engine: ZeroEngine, progress: TrainState, *, due: bool) -> None:
        """Save nothing."""

    def complete(self, engine: ZeroEngine, progress: TrainState) -> None:
        """Save nothing."""


@dataclass
class Memory:
    """A journal that only remembers, and wants to stop after a step (from 1)."""

    stop_after: int
    record: dict[str, Any] = field(default_factory=dict)

    def begin(self, first_step: int, total_steps: int) -> None:
        """There is nothing to open."""

    def proved(self, text: str, record: dict[str, Any]) -> None:
        """The run has told it."""

    def phase(self, name: str, step: int) -> None:
        """Nobody watches."""

    def step(self, record: dict[str, Any]) -> None:
        self.record = record

    def skip(self, step: int, reason: str, rows: Sequence[int]) -> None:
        """The record says so too."""

    def held_out_loss(self, step: int, loss: float) -> None:
        """What was held out is not replayed."""

    def roll_back(self, to_step: int, failed_step: int, barred: Sequence[int]) -> None:
        """Unsaved.restore has refused before."""

    def agreed(self, all_reduce_max: Callable[[int], int]) -> bool:
        return bool(self.record["step"] >= self.stop_after)


def replay_rank(request: RunRequest, world: World, step: int) -> list[str]:
    """Replay a step (from 1) as one rank of `world`; return what came of it, as lines. Collective.

    Raises ConfigError if the run has not taken the step, or the plan has none such.
    """
    then = recorded(request.paths, step)
    parts = assemble(request, world, mark=lambda name: None)
    memory = Memory(step)
    train(parts.plan, parts.engine, parts.batches, Unsaved(parts.checkpoints, step - 1), memory, memory)
    leave_world()
    return compared(then, memory.record, world.size, world_size_at(request.paths, step))


def recorded(paths: RunPaths, step: int) -> dict[str, Any]:
    """Return the step's line of metrics, or raise ConfigError."""
    lines = {int(line["step"]): line for line in read_lines(paths.metrics)}
    if step not in lines:
        raise ConfigError(f"--step {step}: {paths.metrics} has the steps 1 to {max(lines, default=0)}")
    return lines[step]


def compared(then: dict[str, Any], now: dict[str, Any], ranks: int, ranks_then: int) -> list[str]:
    """Return a line for each figure of a step, then and now; repr tells the bits of a float apart."""
    lines = []
    for name in ("loss", "gradient_norm"):
        same = repr(then[name]) == repr(now[name])
        verdict = "equal to the bit" if same else f"differs by {now[name] - then[name]:.3g}"
        lines.append(f"step {now['step']}, {name}: {then[name]!r} in metrics.jsonl, {now[name]!r} replayed: {verdict}")
    if "skipped" in now:
        lines.append(f"skipped: {now['skipped']}")
    if ranks != ranks_then:
        lines.append(f"replayed by {ranks} ranks, taken by {ranks_then}: sums in another order differ in the last bits")
    return lines
