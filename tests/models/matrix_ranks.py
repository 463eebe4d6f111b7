"""One rank of the matrix: families are trained in full or by low-rank additions, one after the other.

    python tests/models/matrix_ranks.py ROOT NAME:KIND:STOP_AFTER ...

A run is in ROOT/runs/NAME/KIND, its model in ROOT/NAME, the data in ROOT/shards; one that was stopped resumes from its
checkpoint. What a run's engine makes of a text at its end is kept, or what the family was refused for.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

from cluster.environment import enter_world, read_world
from cluster.network.world import World

KINDS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"lora": {"rank": 3, "alpha": 6.0}}}
STEPS = 3
TRAIN = {
    "steps": STEPS,
    "global_batch_rows": 4,
    "micro_batch_rows": 2,
    "learning_rate": 1e-2,
    "warmup_fraction": 0.0,
    "precision": "fp32",
    "validation_rows": 2,
}


def request_of(root: Path, name: str, kind: str) -> Any:
    from cluster.paths import RunPaths
    from training.config import ModelConfig, TrainConfig
    from training.train_rank import RunRequest

    return RunRequest(
        paths=RunPaths(root / "runs" / name / kind),
        config="",
        shards=root / "shards",
        model=ModelConfig(path=str(root / name)),
        train=TrainConfig.model_validate({**TRAIN, **KINDS[kind]}),
        seed=0,
    )


def trained(root: Path, name: str, kind: str, stop_after: int, world: World) -> dict[str, Any]:
    """Train until a step; return how documents were kept apart and, of a run that has ended, its last loss."""
    from cluster.errors import ShardlineError
    from training.loop import train
    from training.replay import MetricsOfStep
    from training.train_rank import assemble

    request = request_of(root, name, kind)
    try:
        parts = assemble(request, world, mark=lambda phase: None)
        journal = MetricsOfStep(stop_after)
        train(parts.plan, parts.engine, parts.batches, parts.checkpoints, journal, journal)
    except ShardlineError as error:
        return {"refused": str(error)}
    found = {
        "isolation": parts.engine.model.isolation.value,
        "own_loss": parts.engine.model.rule is not None,
        "loss": journal.record["loss"],
        "gradient_norm": journal.record["gradient_norm"],
    }
    if stop_after == STEPS:
        keep_logits(parts.engine, request.paths.root, world)
    return found


def keep_logits(engine: Any, folder: Path, world: World) -> None:
    """Keep what the trained model makes of a text when anybody calls it."""
    import torch
    from safetensors.torch import save_file

    from tests.models.families import TEXT
    from training.step.packed_model import Isolation

    engine.model.isolate(Isolation.ONE_A_ROW)
    engine.deepspeed.eval()
    with torch.no_grad():
        logits = engine.deepspeed(input_ids=torch.tensor([TEXT]), use_cache=False).logits
    if world.is_first:
        save_file({"logits": logits.float().contiguous()}, folder / "logits.safetensors")


def main(root: str, *jobs: str) -> None:
    world = read_world()
    assert world is not None
    enter_world(world)
    from training.zero.engine import join_world, leave_world

    join_world(world)
    found = {}
    for job in jobs:
        name, kind, stop_after = job.split(":")
        found[f"{name} {kind}"] = trained(Path(root), name, kind, int(stop_after), world)
        gc.collect()
    if world.is_first:
        Path(root, f"found-{world.size}.json").write_text(json.dumps(found))
    leave_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
