"""Replay a step of a run from the checkpoint before it and compare its loss. The run's folder is not changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cluster.errors import ConfigError
from cluster.journal.records import attempt_of_step, read_events, read_metrics
from cluster.network.world import World
from cluster.paths import RunPaths
from cluster.versions import versions
from training.checkpoints.checkpoint import Checkpoints
from training.device import device_name
from training.loop import train
from training.reporting.incidents import change_text
from training.train_rank import RunRequest, assemble
from training.train_state import TrainState
from training.zero.engine import ZeroEngine, leave_world
from training.zero.stage_choice import before_changes, rounding_changes, train_as
from training.zero.stage_choice import recorded as recorded_plan

COMPARED = ("hardware", "versions", "settings")  # of an attempt, besides its ranks, which every start records


@dataclass
class ReadOnlyCheckpoints:
    """A run's checkpoints up to a step: they are loaded, and nothing is saved."""

    checkpoints: Checkpoints
    last: int
    loaded: int = 0
    """How many steps were done in the checkpoint that was loaded."""

    def restore(self, engine: ZeroEngine, before: int | None = None) -> TrainState:
        if before is not None:
            raise ConfigError(
                f"the run rolled back at step {before}, and a replay cannot follow a rollback: replay an earlier step,"
                " or one after the next checkpoint"
            )
        state = self.checkpoints.restore(engine, last=self.last)
        self.loaded = state.steps_done
        return state

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


def replay_rank(request: RunRequest, world: World, step: int, asked: Collection[str] = ()) -> list[str]:
    """Replay a step (from 1) as one rank of `world`; return the comparison as lines of text. Collective.

    What decides the rounding is as in the attempt that took the step, except for the keys of `train` in `asked`.
    Raises ConfigError if the run's metrics do not have the step.
    """
    then = recorded(request.paths, step)
    attempt, since = attempt_of_step(read_events(request.paths), step)
    last = recorded_plan(request.paths.plan)
    if last is not None:
        before = before_changes(last, since)
        request = replace(request, before=before, train=train_as(request.train, before, asked))
    setup = assemble(request, world, mark=lambda name: None)
    metrics, checkpoints = MetricsOfStep(step), ReadOnlyCheckpoints(setup.checkpoints, step - 1)
    train(setup.plan, setup.engine, setup.batches, checkpoints, metrics, metrics)
    leave_world()
    lines, is_same = compared(then, metrics.record)
    if is_same:
        return lines
    here = {**setup.plan.as_record(), "zero": setup.choice.as_record()}
    told = [*settings_told(setup.before, here), *differences(attempt, facts_here(world))]
    told += chance_told(here, has_gpu=torch.cuda.is_available())
    unknown = not_recorded(attempt, setup.before, here)
    return [*lines, *reasons(told, unknown), *earlier_steps(attempt, checkpoints.loaded)]


def recorded(paths: RunPaths, step: int) -> dict[str, Any]:
    """Return the step's line of metrics, or raise ConfigError."""
    lines = {int(line["step"]): line for line in read_metrics(paths.metrics)}
    if step not in lines:
        raise ConfigError(f"--step {step}: {paths.metrics} has steps 1 to {max(lines, default=0)}; give one of them")
    return lines[step]


def compared(then: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], bool]:
    """Return a line for each figure of a step, recorded and replayed, and whether all are equal to the bit.

    repr shows every bit of a float.
    """
    lines, is_same = [], True
    for name in ("loss", "gradient_norm"):
        same = repr(then[name]) == repr(now[name])
        is_same = is_same and same
        verdict = "equal to the bit" if same else f"differs by {now[name] - then[name]:.3g}"
        lines.append(f"step {now['step']}, {name}: {then[name]!r} in metrics.jsonl, {now[name]!r} replayed: {verdict}")
    if "skipped" in now:
        lines.append(f"skipped: {now['skipped']}")
    return lines, is_same


def facts_here(world: World) -> dict[str, Any]:
    """Return what the start of an attempt records of its ranks, of this replay."""
    return {"world_size": world.size, "device": device_name(), "versions": versions()}


def settings_told(before: Mapping[str, Any] | None, here: Mapping[str, Any]) -> list[str]:
    """Return what was asked for here otherwise than in the attempt, or did not fit into memory here."""
    found = rounding_changes(before, here) if before else {}
    return [change_text(key, *pair) for key, pair in found.items()]


def chance_told(here: Mapping[str, Any], *, has_gpu: bool) -> list[str]:
    """Return that this replay may not repeat itself either, where a GPU was not asked for the same bits each time."""
    if not has_gpu or here["config"]["deterministic"]:
        return []
    return ["train.deterministic is false: a GPU may compute other bits each time"]


def differences(attempt: Mapping[str, Any] | None, here: Mapping[str, Any]) -> list[str]:
    """Return how the ranks, the hardware and the versions differ from those of the attempt, as far as it tells them."""
    if attempt is None:
        return []
    pairs = {"ranks": (attempt["world_size"], here["world_size"]), "hardware": (attempt.get("device"), here["device"])}
    then, now = attempt.get("versions") or {}, here["versions"]
    pairs |= {name: (then.get(name), now.get(name)) for name in ("torch", "deepspeed", "transformers", "shardline")}
    pairs["commit of shardline"] = then.get("commit"), now.get("commit")
    told = [f"{name}: then {was}, now {new}" for name, (was, new) in pairs.items() if was and new and was != new]
    changed = [when for when, found in (("then", then), ("now", now)) if found.get("dirty")]
    return [*told, *([f"code of shardline changed since its commit: {' and '.join(changed)}"] if changed else [])]


def not_recorded(
    attempt: Mapping[str, Any] | None, before: Mapping[str, Any] | None, here: Mapping[str, Any]
) -> list[str]:
    """Return what of the attempt could not be compared."""
    facts = {"hardware": (attempt or {}).get("device"), "versions": (attempt or {}).get("versions"), "settings": before}
    configs = [dict((record or {}).get("config") or {}) for record in (before, here)]
    templates = sorted({str(config["deepspeed"]) for config in configs if config.get("deepspeed")})
    return [*(name for name in COMPARED if not facts[name]), *(f"what {path} said" for path in templates)]


def reasons(told: Sequence[str], unknown: Sequence[str]) -> list[str]:
    """Return lines that say why a replayed step may differ."""
    lines = ["the reason may be:", *(f"  {t}" for t in told)] if told else []
    if unknown:
        lines.append(f"not recorded of that attempt, so it may differ too: {', '.join(unknown)}")
    if not told and not set(COMPARED) <= set(unknown):
        lines.append("no difference was found in what is recorded; `shardline doctor` examines this host")
    return lines


def earlier_steps(attempt: Mapping[str, Any] | None, loaded: int) -> list[str]:
    """Return a line if steps were replayed that another attempt took than the one of the step."""
    if attempt is None or loaded >= attempt["step"]:
        return []
    return [
        f"replayed from the checkpoint after step {loaded}, as the one after step {attempt['step']}, where the attempt"
        f" that took the step began, is gone: an earlier attempt took the steps between, perhaps on other ranks or"
        " with other settings"
    ]
