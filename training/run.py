"""Put one rank of a run together, and train."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from cluster.environment import World, free_memory_bytes
from cluster.files import write_json
from cluster.journal import Journal
from cluster.paths import RunPaths
from cluster.stop import StopFlag
from data_prep.shards import ShardReader, read_manifest
from training.batches import Batches
from training.checkpoint import Checkpoints, SavePolicy
from training.config import ModelConfig, TrainConfig
from training.ds_config import deepspeed_config, read_template
from training.engine import Engine, join_world, leave_world
from training.loop import Outcome, train
from training.model import ModelOrigin, find_model
from training.order import Order
from training.plan import make_plan

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What a rank needs of the run's configuration."""

    paths: RunPaths
    shards: Path
    model: ModelConfig
    train: TrainConfig
    seed: int


def train_rank(request: RunRequest, world: World, stop: StopFlag) -> int:
    """Train as one rank of `world`; return the exit code. Collective."""
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
    if world.is_first:
        write_json(request.paths.plan, plan.as_record())
        log.info("plan\n%s", plan.as_text())
    reader = ShardReader(request.shards, manifest, "train")
    order = Order(
        row_count=plan.rows, global_batch_rows=plan.global_batch_rows, seed=plan.seed, data_digest=plan.data_digest
    )
    batches = Batches(
        reader=reader,
        order=order,
        rank=world.rank,
        world_size=world.size,
        micro_batch_rows=plan.micro_batch_rows,
    )
    join_world(world)
    engine = Engine(origin.config, request.train, plan, deepspeed_config(template, request.train, plan), world)
    checkpoints = Checkpoints(
        request.paths.checkpoints,
        {**plan.identity(), **frozen_identity(engine, origin, request.seed)},
        save_policy(request.train),
        first_weights=lambda: origin.first_weights(request.seed, request.train.lora),
    )
    if engine.frozen():
        engine.fill_frozen(origin.first_weights(request.seed, request.train.lora))
    journal = Journal(request.paths, world, plan.total_steps)
    outcome = train(plan, engine, batches, checkpoints, stop, journal)
    reason = "done" if outcome is Outcome.FINISHED else str(stop.reason)
    journal.end(reason, outcome.value)
    log.info("%s after step %d of %d", reason, journal.last_step, plan.total_steps)
    leave_world()
    return outcome.value


def save_policy(train: TrainConfig) -> SavePolicy:
    """Return how checkpoints are saved, and which stay."""
    allowed = free_memory_bytes() // 2 if train.save_copy_gb is None else int(train.save_copy_gb * 1e9)
    return SavePolicy(keep_last=train.keep_last, keep_every_steps=train.keep_every_steps, copy_bytes=allowed)


def frozen_identity(engine: Engine, origin: ModelOrigin, seed: int) -> dict[str, str]:
    """Return where the weights come from that a checkpoint does not hold. Collective: the first rank reads them."""
    if not engine.frozen():
        return {}
    return {"frozen weights": engine.from_first(lambda: origin.source_digest(seed))}
