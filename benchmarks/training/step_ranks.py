"""One rank of `step`: the same packed rows, taken by us, by transformers' Trainer with ZeRO-3 and by a plain DDP loop.

    python -m benchmarks.training.step_ranks VARIANT OUTPUT SHAPE PRECISION STEPS

It writes OUTPUT-RANK.json: the loss, the seconds and the CPU-seconds of each step, and the largest memory.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.training.step_peers import ddp, trainer
from benchmarks.training.step_work import LEARNING_RATE, SHAPES, Job, Taken, tokens_of_step
from cluster.environment import enter_world, read_world


def ours(job: Job, taken: Taken, *, as_before: bool) -> None:
    """Take steps with our engine; `as_before`, with a dense mask and the logits of all tokens."""
    from transformers import LlamaConfig

    from benchmarks.plans import plan_of
    from training.config import TrainConfig
    from training.models.new_weights import NewWeights
    from training.models.source import skeleton_of
    from training.step.packed_model import Isolation
    from training.zero.ds_config import deepspeed_config, read_template
    from training.zero.engine import ZeroEngine, join_world

    world, shape = job.world, job.shape
    join_world(world)
    train = TrainConfig(
        steps=1000,
        global_batch_rows=world.size * shape.rows,
        micro_batch_rows=shape.rows,
        learning_rate=LEARNING_RATE,
        precision=job.precision,
    )
    plan = replace(
        plan_of(train, world.size, shape.row_tokens, steps=1000),
        micro_batch_rows=shape.rows,
        global_batch_rows=train.global_batch_rows,
    )
    config = LlamaConfig(**shape.config)
    engine = ZeroEngine(config, train, plan, deepspeed_config(read_template(None), train, plan), world)
    engine.start_from(NewWeights(skeleton_of(config), seed=0))
    if as_before:
        engine.model.isolate(Isolation.BY_MASK)
        engine.model.rule = None
    else:
        engine.check_isolation([job.batch(0)])
    for step in range(job.steps):
        batch, tokens = job.batch(step), tokens_of_step(shape, step, world)
        taken.time(lambda: engine.step(step, [batch], tokens, LEARNING_RATE, lambda stats: None).loss)  # noqa: B023


def main(variant: str, output: str, shape: str, precision: str, steps: str) -> None:
    world = read_world()
    assert world is not None
    enter_world(world)
    job, taken = Job(world=world, shape=SHAPES[shape], precision=precision, steps=int(steps)), Taken()
    if variant.startswith("shardline"):
        ours(job, taken, as_before=variant.endswith("before"))
    else:
        {"trainer": trainer, "ddp": ddp}[variant](job, taken)
    taken.write(Path(f"{output}-{world.rank}.json"))


if __name__ == "__main__":
    main(*sys.argv[1:])
