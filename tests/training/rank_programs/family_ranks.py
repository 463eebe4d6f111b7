"""One rank of the trials that test_families_in_ranks looks at.

    python tests/training/rank_programs/family_ranks.py OUTPUT MODEL SHARDS

Models as the hub holds them, read into an engine by every rank, each its own part.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cluster.environment import enter_world, read_world
from tests.training.rank_programs.frozen_ranks import whole_weights
from tests.training.rank_programs.ranks import MIXED, Trials

CASES = (("mixtral", "fp32"), ("gemma3", "fp32"), ("gpt_neox", "fp32"), ("deepseek_v3", "bf16"))


def family_folder(output: Path, name: str, rank: int) -> Path:
    return output / f"model-{name}-{rank}"


def read_family(trials: Trials, name: str, precision: str) -> None:
    """Keep what forward sees of a family's weights and buffers."""
    from transformers import AutoConfig

    from data_prep.shards import read_manifest
    from training.config import TrainConfig
    from training.models.source import ModelOrigin
    from training.plan import make_plan
    from training.zero.ds_config import deepspeed_config
    from training.zero.engine import ZeroEngine

    folder = family_folder(trials.output, name, trials.world.rank)
    origin = ModelOrigin(config=AutoConfig.from_pretrained(folder), tokenizer=None, folder=folder)
    config = TrainConfig.model_validate({"steps": 1, "global_batch_rows": 2, "precision": precision})
    manifest = read_manifest(trials.shards)
    plan = make_plan(config, manifest, parameters=origin.parameters, world_size=trials.world.size, seed=0)
    engine = ZeroEngine(origin.config, config, plan, deepspeed_config(dict(MIXED), config, plan), trials.world)
    engine.fill_frozen(origin.first_weights(0))
    engine.start_from(origin.first_weights(0))
    trials.keep(f"weights-{name}", whole_weights(engine))
    trials.keep(f"buffers-{name}", dict(engine.module.named_buffers()))


def main(output: str, model: str, shards: str) -> None:
    world = read_world()
    assert world is not None
    enter_world(world)
    from tests.models.families import make_family
    from training.zero.engine import join_world, leave_world

    for name, _ in CASES:  # before the ranks meet: transformers then writes on the first only
        make_family(name, family_folder(Path(output), name, world.rank))
    join_world(world)
    trials = Trials(Path(output), Path(model), Path(shards), world)
    for name, precision in CASES:
        read_family(trials, name, precision)
    leave_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
