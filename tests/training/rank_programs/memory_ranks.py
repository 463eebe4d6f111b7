"""One rank of the trials that test_measured_memory looks at.

    python tests/training/rank_programs/memory_ranks.py OUTPUT MODEL SHARDS

Under every template the real engine takes two steps. Kept are the bytes of all its tensors, by precision: after a step,
and between backward and update, when the gradients are whole.
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from cluster.environment import enter_world, read_world
from tests.training.rank_programs.ranks import Trials, take_step

FOLDER = Path(__file__).resolve().parents[3] / "ds_configs"
LLAMA = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
TEMPLATES = ("zero1", "zero2", "zero3")
BUCKET = 1 << 14  # elements; the default buckets would take gigabytes on a CPU


def template_of(name: str) -> dict[str, Any]:
    template: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    zero = template["zero_optimization"]
    zero |= {key: BUCKET for key in zero if key.endswith("bucket_size")}
    zero |= {key: 0 for key in zero if key.endswith("persistence_threshold")}
    return template


def tensors(engine: Any = None) -> dict[int, Any]:
    """Return a tensor of each storage that is alive, by the storage's address."""
    import torch

    found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    if engine is not None:
        found += [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return {tensor.untyped_storage().data_ptr(): tensor for tensor in found if tensor.device.type == "cpu"}


def tensor_bytes(engine: Any, others: dict[int, Any]) -> dict[str, int]:
    """Return the bytes of all storages but `others`, by their tensors' type."""
    total: Counter[str] = Counter()
    for address, tensor in tensors(engine).items():
        if address not in others:
            total[str(tensor.dtype).removeprefix("torch.")] += tensor.untyped_storage().nbytes()
    return dict(total)


def measure(trials: Trials, name: str, **train: Any) -> None:
    """Take two steps under a template and keep what the tensors took."""
    gc.collect()
    others = tensors()  # kept: an engine before this one may still be alive
    new = {"new": {"config": LLAMA}}
    engine, batches, origin = trials.engine(
        new, template_of(name), precision="bf16", micro_batch_rows=1, clip_gradient_norm=1.0, **train
    )
    if engine.frozen():
        engine.fill_frozen(origin.first_weights(0, engine_lora(train)))
    engine.start_from(origin.first_weights(0, engine_lora(train)))
    seen: dict[str, dict[str, int]] = {}
    true_norms = engine.gradient_norms

    def norms() -> Any:
        gc.collect()  # what only waits to be collected is not the engine's
        seen["gradients"] = tensor_bytes(engine, others)
        return true_norms()

    engine.gradient_norms = norms
    for step in range(2):
        take_step(engine, batches, step, 1e-3)
    gc.collect()
    seen["rest"] = tensor_bytes(engine, others)
    skeleton = origin.trained_skeleton(train_config(train))
    sizes = {n: [list(p.shape), p.requires_grad] for n, p in skeleton.named_parameters()}
    kind = "lora" if "lora" in train else "full"
    trials.keep_facts(f"memory-{name}-{kind}", seen=seen, parameters=sizes, config=origin.config.to_dict())


def train_config(train: dict[str, Any]) -> Any:
    from training.config import TrainConfig

    return TrainConfig(**train)


def engine_lora(train: dict[str, Any]) -> Any:
    return train_config(train).lora


def main(output: str, model: str, shards: str) -> None:
    world = read_world()
    assert world is not None
    enter_world(world)
    from training.zero.engine import join_world, leave_world

    join_world(world)
    trials = Trials(Path(output), Path(model), Path(shards), world)
    for name in TEMPLATES:
        measure(trials, name)
    measure(trials, "zero3", lora={"rank": 4})
    leave_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
