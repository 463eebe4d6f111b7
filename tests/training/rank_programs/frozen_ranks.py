"""One rank of the trials that test_frozen looks at.

    python tests/training/rank_programs/frozen_ranks.py OUTPUT MODEL SHARDS

A model with frozen parameters, and one with low-rank additions, under every ZeRO stage.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.environment import enter_world, read_world
from tests.training.rank_programs.ranks import LEARNING_RATE, Trials, take_step
from tests.training.rank_programs.sharding_ranks import ROWS, collect, templates

TEMPLATES = ("zero1", "zero2", "zero3", "zero3_offload_cpu")
TRAINED: dict[str, dict[str, Any]] = {
    "freeze": {"freeze": ["model.embed_tokens.*", "*.0.*", "model.norm.weight"]},
    "lora": {"lora": {"rank": 3, "alpha": 6.0}},
}


def whole_weights(engine: Any) -> dict[str, Any]:
    """Return what forward sees of every parameter, gathered. Collective."""
    import deepspeed

    found = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            found[name] = parameter.detach().clone().float()
    return found


def steps(trials: Trials, trial: str, template: Mapping[str, Any], train: Mapping[str, Any]) -> None:
    """Keep a start, two steps, and the next steps of a second engine that resumes from a checkpoint.

    The second one computes activations again.
    """
    from training.checkpoints.async_save import SavePolicy
    from training.checkpoints.checkpoint import Checkpoints
    from training.config import LoraConfig
    from training.train_state import TrainState

    common = {"micro_batch_rows": 1, "global_batch_rows": ROWS, "weight_decay": 0.1, **train}
    lora = LoraConfig(**train["lora"]) if "lora" in train else None
    model = {"path": str(trials.model)}
    engine, batches, origin = trials.engine(model, template, **common)
    engine.fill_frozen(origin.first_weights(0, lora))
    engine.start_from(origin.first_weights(0, lora))
    trials.keep(f"first-{trial}", whole_weights(engine))
    losses = [take_step(engine, batches, step, LEARNING_RATE) for step in range(2)]
    trials.keep(f"last-{trial}", whole_weights(engine))
    state = collect(engine)
    trials.keep(f"state-{trial}", state)
    facts: dict[str, Any] = {"losses": losses, "frozen": engine.frozen(), "trained": [s.name for s in engine.layout()]}
    if template["zero_optimization"]["stage"] == 3:
        checkpoints = Checkpoints(
            trials.output / trial,
            {"run": 1},
            SavePolicy(keep_last=1, keep_every_steps=None, copy_bytes=0),  # written while training waits
            first_weights=lambda: origin.first_weights(0, lora),
        )
        checkpoints.complete(engine, TrainState(steps_done=2))
        again, _, _ = trials.engine(model, template, **common, activation_checkpointing="selective")
        again.fill_frozen(origin.first_weights(0, lora))
        checkpoints.restore(again)
        facts["next"] = [[take_step(e, batches, step, LEARNING_RATE) for step in (2, 3)] for e in (engine, again)]
    trials.keep_facts(trial, **facts)


def main(output: str, model: str, shards: str) -> None:
    world = read_world()
    assert world is not None
    enter_world(world)
    from training.zero.engine import join_world, leave_world

    join_world(world)
    trials = Trials(Path(output), Path(model), Path(shards), world)
    chosen = templates("-")
    for kind, train in TRAINED.items():
        for name in TEMPLATES:
            steps(trials, f"{kind}-{name}", chosen[name], train)
    leave_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
