"""One rank of an attempt of a run that resumes with another world size, under another template: see test_journey.

python tests/training/rank_programs/journey_ranks.py OUTPUT MODEL SHARDS CHECKPOINTS TEMPLATE STEPS
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cluster.environment import enter_world, read_world
from tests.training.rank_programs.ranks import LEARNING_RATE, WEIGHT_DECAY, Trials, take_step
from tests.training.rank_programs.sharding_ranks import ODD_GPT2, collect, templates

GLOBAL_BATCH = 12  # for 1, 2, 3 and 4 ranks


def main(output: str, model: str, shards: str, checkpoints: str, template: str, steps: str) -> None:
    """Take some steps, and keep the whole state as it was loaded and as it was saved."""
    world = read_world()
    assert world is not None
    enter_world(world)
    from training.checkpoints.async_save import SavePolicy
    from training.checkpoints.checkpoint import Checkpoints
    from training.step.loss import StepStats
    from training.zero.engine import join_world, leave_world

    join_world(world)
    trials = Trials(Path(output), Path(model), Path(shards), world)
    new = {"new": {"model_type": "gpt2", "config": ODD_GPT2}}
    train = {"micro_batch_rows": 1, "global_batch_rows": GLOBAL_BATCH, "weight_decay": WEIGHT_DECAY}
    engine, batches, origin = trials.engine(new, templates("-")[template], **train)
    policy = SavePolicy(keep_last=9, keep_every_steps=None, copy_bytes=1 << 30)
    saves: Any = Checkpoints(Path(checkpoints), {"run": 1}, policy, first_weights=lambda: origin.first_weights(0))
    progress = saves.restore(engine)
    trials.keep("loaded", collect(engine))
    losses, rows = [], []
    for step in range(progress.steps_done, progress.steps_done + int(steps)):
        losses.append(take_step(engine, batches, step, LEARNING_RATE))
        rows.append(batches.order.rows_of_step(step))
        progress = progress.after(step, StepStats(loss=losses[-1], gradient_norm=1.0))
    saves.complete(engine, progress)
    trials.keep("saved", collect(engine))
    trials.keep_facts("journey", losses=losses, rows=rows, steps_done=progress.steps_done)
    leave_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
