"""Put one rank of a run together, and train."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.disk.atomic_files import write_json, write_text
from cluster.environment import World, free_memory_bytes
from cluster.errors import EXIT_FAILED, ClusterError, ConfigError, DamagedRowsError, exit_code_of
from cluster.heartbeat import Heartbeat, start_watchdog
from cluster.journal import Journal
from cluster.paths import RunPaths
from cluster.stop_request import StopFlag
from cluster.versions import as_text, versions
from data_prep.shards import ShardReader, read_manifest
from training.checkpoints.async_save import SavePolicy
from training.checkpoints.checkpoint import Checkpoints
from training.config import ModelConfig, TrainConfig
from training.loop import Outcome, train
from training.models.source import ModelOrigin, find_model
from training.order import Order
from training.plan import Plan, make_plan
from training.run_identity import changes
from training.step.batches import Batches
from training.zero.ds_config import deepspeed_config, read_template
from training.zero.engine import ZeroEngine, join_world, leave_world

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What a rank needs of the run's configuration. `config` is the text that the run's folder keeps of it."""

    paths: RunPaths
    config: str
    shards: Path
    model: ModelConfig
    train: TrainConfig
    seed: int


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a rank trains with."""

    plan: Plan
    engine: ZeroEngine
    batches: Batches
    checkpoints: Checkpoints


def train_rank(request: RunRequest, world: World, stop: StopFlag) -> int:
    """Train as one rank of `world`; return the exit code. Collective."""
    heartbeat = Heartbeat(request.paths, world)
    heartbeat.start()
    start_watchdog(request.paths, world, request.train.hang_timeout_s)
    journal = Journal(request.paths, world, heartbeat)
    journal.mark("imports")
    if world.is_first:
        log.info("%s", as_text(versions()))  # the first call, so that what is recorded is the code that runs
    try:
        parts = assemble(request, world, journal.mark)
        journal.when_accepted(lambda: write_accepted(request, parts, journal))
        outcome = train(parts.plan, parts.engine, parts.batches, parts.checkpoints, stop, journal)
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code_of(error)
        cause = journal.end_by_another_rank() if code == EXIT_FAILED else None  # this rank then failed for want of it
        told = str(error).splitlines() or ["no message"]
        journal.end(f"{type(error).__name__}: {told[0]}", code, is_own=isinstance(error, DamagedRowsError))
        if cause:
            raise ClusterError(f"another rank has ended the run: {cause}") from None
        raise
    reason = "done" if outcome is Outcome.FINISHED else str(stop.reason)
    journal.end(reason, outcome.value)
    log.info("%s after step %d of %d", reason, journal.last_step, parts.plan.total_steps)
    leave_world()
    return outcome.value


def write_accepted(request: RunRequest, parts: Parts, journal: Journal) -> None:
    """Write the configuration and the plan that the run goes on with, now that its checkpoint fits them.

    On the first rank.
    """
    write_text(request.paths.config, request.config)
    write_json(request.paths.plan, parts.plan.as_record())
    then = parts.checkpoints.restored_identity
    changed = changes(then, parts.checkpoints.identity) if then else {}
    if changed:
        journal.change_length({key: list(values) for key, values in changed.items()}, parts.plan.total_steps)


def assemble(request: RunRequest, world: World, mark: Callable[[str], None]) -> Parts:
    """Plan the run, join the world and build what a rank trains with; the weights are not loaded yet. Collective.

    `mark` is told the name of each phase at its end.
    """
    manifest = read_manifest(request.shards)
    origin = find_model(request.model, request.shards, manifest)
    template = read_template(request.train.deepspeed)
    plan = make_plan(
        request.train,
        manifest,
        parameters=origin.parameters,
        trained_parameters=origin.trained_parameters(request.train),
        world_size=world.size,
        seed=request.seed,
    )
    log.info("plan\n%s", plan.as_text())
    order = Order(
        row_count=plan.rows, global_batch_rows=plan.global_batch_rows, seed=plan.seed, data_digest=plan.data_digest
    )
    batches = Batches(
        reader=ShardReader(request.shards, manifest, "train"),
        order=order,
        rank=world.rank,
        world_size=world.size,
        micro_batch_rows=plan.micro_batch_rows,
        held_out=ShardReader(request.shards, manifest, "validation"),
        held_out_rows=min(request.train.validation_rows, manifest.rows("validation")),
    )
    mark("plan")
    join_world(world)
    mark("ranks")
    engine = build_engine(origin, request.train, plan, template, world)
    mark("engine")
    checkpoints = Checkpoints(
        request.paths.checkpoints,
        {**plan.identity(), **origin.identity(), **frozen_identity(engine, origin, request.seed)},
        save_policy(request.train),
        first_weights=lambda: origin.first_weights(request.seed, request.train.lora),
        rows=plan.rows,
    )
    if engine.frozen():
        engine.fill_frozen(origin.first_weights(request.seed, request.train.lora))
    return Parts(plan=plan, engine=engine, batches=batches, checkpoints=checkpoints)


def build_engine(
    origin: ModelOrigin, train: TrainConfig, plan: Plan, template: dict[str, Any], world: World
) -> ZeroEngine:
    """Build the engine. Collective. Raises ConfigError for a template with keys or values that DeepSpeed refuses."""
    try:
        return ZeroEngine(origin.config, train, plan, deepspeed_config(template, train, plan), world)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors())
        raise ConfigError(f"train.deepspeed: {train.deepspeed}: DeepSpeed does not take it: {told}") from None


def save_policy(train: TrainConfig) -> SavePolicy:
    """Return how checkpoints are saved, and which stay."""
    allowed = free_memory_bytes() // 2 if train.save_copy_gb is None else int(train.save_copy_gb * 1e9)
    return SavePolicy(keep_last=train.keep_last, keep_every_steps=train.keep_every_steps, copy_bytes=allowed)


def frozen_identity(engine: ZeroEngine, origin: ModelOrigin, seed: int) -> dict[str, str]:
    """Return where the weights come from that a checkpoint does not hold. Collective: the first rank reads them."""
    if not engine.frozen():
        return {}
    return {"frozen weights": engine.broadcast_from_rank0(lambda: origin.source_digest(seed))}
