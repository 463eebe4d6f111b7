"""One rank of `step`, `hooks` and `gpu`: the same packed rows, taken by us or by a peer.

    python -m benchmarks.training.step_ranks VARIANT OUTPUT SHAPE PRECISION STEPS

It writes OUTPUT-RANK.json: the loss, the seconds and the CPU-seconds of each step, and the largest memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.training.step_peers import bare, ddp, trainer, trl
from benchmarks.training.step_work import LEARNING_RATE, SHAPES, Job, Taken, tokens_of_step
from cluster.environment import enter_world, read_world


@dataclass(frozen=True, kw_only=True)
class Levers:
    """What of our engine is turned off or on; the default is what a run does."""

    dense_mask: bool = False
    all_logits: bool = False
    leaf_modules: bool = True
    checkpointing: bool = False
    deterministic: bool = False
    zero: dict[str, Any] = field(default_factory=dict)
    """Keys of `zero_optimization` that differ from ds_configs/zero3.json."""


NOTHING_PERSISTENT = {"stage3_param_persistence_threshold": 0}


def ours(job: Job, taken: Taken, levers: Levers) -> None:
    """Take steps with our engine."""
    engine = engine_of(job, levers)
    engine.check_isolation([job.batch(0)])
    if levers.dense_mask:
        from training.step.packed_model import Isolation

        engine.model.isolate(Isolation.BY_MASK)
    if levers.all_logits:
        engine.model.rule = None
    for step in range(job.steps):
        batch, tokens = job.batch(step), tokens_of_step(job.shape, step, job.world)
        taken.time(lambda: engine.step(step, [batch], tokens, LEARNING_RATE, lambda stats: None).loss)  # noqa: B023


def engine_of(job: Job, levers: Levers) -> Any:
    """Return our engine with a new model."""
    from transformers import LlamaConfig

    from benchmarks.plans import plan_of
    from training.config import TrainConfig
    from training.device import make_deterministic
    from training.models.new_weights import NewWeights
    from training.models.source import skeleton_of
    from training.zero import model
    from training.zero.ds_config import deepspeed_config, read_template
    from training.zero.engine import ZeroEngine, join_world

    world, shape = job.world, job.shape
    join_world(world)
    if levers.deterministic:
        make_deterministic()
    train = TrainConfig(
        steps=1000,
        global_batch_rows=world.size * shape.rows,
        micro_batch_rows=shape.rows,
        learning_rate=LEARNING_RATE,
        precision=job.precision,
        activation_checkpointing="full" if levers.checkpointing else "none",
    )
    plan = replace(
        plan_of(train, world.size, max(shape.row_tokens, 64), steps=1000),
        micro_batch_rows=shape.rows,
        global_batch_rows=train.global_batch_rows,
    )
    template = read_template(None)
    template["zero_optimization"] |= levers.zero
    if not levers.leaf_modules:
        model.layers_after_trained = lambda model: []
    config = LlamaConfig(**shape.config)
    engine = ZeroEngine(config, train, plan, deepspeed_config(template, train, plan), world)
    engine.start_from(NewWeights(skeleton_of(config), seed=0))
    return engine


VARIANTS: dict[str, Callable[[Job, Taken], None]] = {
    **{
        name: partial(ours, levers=levers)
        for name, levers in {
            "shardline": Levers(),
            "shardline as before": Levers(dense_mask=True, all_logits=True),
            "shardline, dense mask": Levers(dense_mask=True),
            "shardline, all logits": Levers(all_logits=True),
            "shardline, no leaf modules": Levers(leaf_modules=False),
            "shardline, memory-efficient linear": Levers(zero={"memory_efficient_linear": True}),
            "shardline, nothing persistent": Levers(zero=NOTHING_PERSISTENT),
            "shardline, activation checkpointing": Levers(checkpointing=True),
            "shardline, deterministic": Levers(deterministic=True),
        }.items()
    },
    "trainer": trainer,
    "trainer, nothing persistent": partial(trainer, zero=NOTHING_PERSISTENT),
    "trl": trl,
    "ddp": ddp,
    "bare": bare,
}


def main(variant: str, output: str, shape: str, precision: str, steps: str) -> None:
    world = read_world()
    assert world is not None
    enter_world(world)
    job, taken = Job(world=world, shape=SHAPES[shape], precision=precision, steps=int(steps)), Taken()
    VARIANTS[variant](job, taken)
    taken.write(Path(f"{output}-{world.rank}.json"))


if __name__ == "__main__":
    main(*sys.argv[1:])
