"""One rank of the trials that test_shardings looks at.

    python tests/training/rank_programs/sharding_ranks.py OUTPUT MODEL SHARDS NVME

Under every template the real engine takes steps; what one leaves is put into each of the others. With NVME, a folder,
it is ZeRO-3 in memory beside ZeRO-3 in files; with '-', all that are in memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.environment import enter_world, read_world
from tests.training.rank_programs.ranks import LEARNING_RATE, NO_DROPOUT, Trials, refused_steps, take_step

FOLDER = Path(__file__).resolve().parents[3] / "ds_configs"
IN_MEMORY = ("zero1", "zero2", "zero2_offload_cpu", "zero3", "zero3_offload_cpu")
IN_FILES = ("zero3", "zero3_offload_nvme")
ODD_GPT2 = {"n_embd": 15, "n_layer": 2, "n_head": 3, **NO_DROPOUT}  # tied embeddings, and nothing divides
WIDE_GPT2 = {**ODD_GPT2, "n_embd": 135, "n_layer": 3}  # what is smaller than 1 MiB stays in memory
ROWS = 7  # over three ranks, two rows at a time: two accumulation steps, and 5 of 12 places are empty
KINDS = ("master", "exp_avg", "exp_avg_sq")


def templates(nvme: str) -> dict[str, dict[str, Any]]:
    """Return the templates as they come with us, with small buckets: the default ones take gigabytes on a CPU."""
    found = {}
    for name in IN_MEMORY if nvme == "-" else IN_FILES:
        template = json.loads((FOLDER / f"{name}.json").read_text())
        zero = template["zero_optimization"]
        zero |= {key: 1_000_000 for key in zero if key.endswith("bucket_size")}
        if name.endswith("nvme"):
            zero["offload_optimizer"]["nvme_path"] = nvme
        found[name] = template
    return found


def collect(engine: Any) -> dict[str, Any]:
    """Return every trained parameter's whole state, bit for bit, from all ranks' parts. Collective."""
    import torch
    import torch.distributed as dist

    whole = {f"{kind}.{s.name}": torch.zeros(s.numel, dtype=torch.int32) for s in engine.layout() for kind in KINDS}
    holders = {slot.name: torch.zeros(slot.numel) for slot in engine.layout()}
    for part in engine.parts():
        holders[part.name][part.start : part.stop] += 1
        for kind in KINDS:
            whole[f"{kind}.{part.name}"][part.start : part.stop] = part.values[kind].view(torch.int32)
    for tensor in (*whole.values(), *holders.values()):
        dist.all_reduce(tensor)
    assert all(bool((count == 1).all()) for count in holders.values()), "an element is not held by exactly one rank"
    return {name: tensor.view(torch.float32) for name, tensor in whole.items()}


def put(engine: Any, whole: Mapping[str, Any], updates: int) -> None:
    """Resume from another engine's state."""
    for part in engine.parts(writing=True):
        for kind in KINDS:
            part.values[kind].copy_(whole[f"{kind}.{part.name}"][part.start : part.stop])
    engine.continue_after(updates)


def same_bits(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    import torch

    return left.keys() == right.keys() and all(
        torch.equal(left[name].view(torch.int32), right[name].view(torch.int32)) for name in left
    )


def begin(trials: Trials, trial: str, engine: Any, batches: Any, origin: Any) -> list[float]:
    """Take the first steps of a run and return their losses; keep its first weights and first gradients.

    From zero, Adam's first moment is (1 - beta1) times the gradient.
    """
    engine.start_from(origin.first_weights(0))
    put(engine, {key: value * key.startswith("master") for key, value in collect(engine).items()}, 0)
    trials.keep(f"weights-{trial}", collect(engine))
    losses = [take_step(engine, batches, 0, LEARNING_RATE)]
    whole = collect(engine)
    trials.keep(f"gradients-{trial}", {s.name: whole[f"exp_avg.{s.name}"] / (1 - 0.9) for s in engine.layout()})
    return [*losses, take_step(engine, batches, 1, LEARNING_RATE)]


def switches(trials: Trials, chosen: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, Any], precision: str) -> None:
    """Keep what happens to a run that begins under one template and resumes under another."""
    new = {"new": {"model_type": "gpt2", "config": sizes}}
    train = {"micro_batch_rows": 2, "global_batch_rows": ROWS, "precision": precision, "weight_decay": 0.1}
    engines = {name: trials.engine(new, template, **train) for name, template in chosen.items()}
    for first, (engine, batches, origin) in engines.items():
        losses = begin(trials, f"{precision}-{first}", engine, batches, origin)
        left = collect(engine)
        refused_steps(trials, engine, batches, len(losses))
        facts: dict[str, Any] = {
            "losses": losses,
            "optimizer": type(engine.optimizer).__name__,
            "refused_steps_change_nothing": same_bits(collect(engine), left),
        }
        for second, (other, _, _) in engines.items():
            put(other, left, len(losses))
            kept = same_bits(collect(other), left)
            facts[second] = {"same_bits": kept, "loss": take_step(other, batches, len(losses), LEARNING_RATE)}
        trials.keep_facts(f"switch-{precision}-{first}", **facts)


def main(output: str, model: str, shards: str, nvme: str) -> None:
    world = read_world()
    assert world is not None
    enter_world(world)
    from training.zero.engine import join_world, leave_world

    join_world(world)
    trials = Trials(Path(output), Path(model), Path(shards), world)
    chosen = templates(nvme)
    for precision in ("fp32", "bf16"):
        switches(trials, chosen, ODD_GPT2 if nvme == "-" else WIDE_GPT2, precision)
    leave_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
