"""One rank of the trials that test_gradients, test_first_loss and test_zero3_contract look at.

    python tests/training/rank_programs/ranks.py OUTPUT MODEL SHARDS

Each trial takes a step or two with the real engine and writes this rank's parts, as OUTPUT/TRIAL-RANK.safetensors;
several trials share a process, because starting one takes longer than all of them.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.environment import enter_world, read_world
from cluster.network.world import World

GLOBAL_BATCH = 8
FACTORINGS = {1: (1, 4), 2: (1, 2, 3), 4: (2, 3)}  # micro_batch_rows for each world size
NEW_LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
ODD_GPT2 = {"n_embd": 5, "n_layer": 2, "n_head": 1, **NO_DROPOUT}  # vectors of 5: over 4 ranks 2, 2, 1 and none
SET_STEP, LEARNING_RATE, WEIGHT_DECAY = 7, 1e-2, 0.1
MIXED = {"zero_optimization": {"stage": 3, "memory_efficient_linear": False, "stage3_param_persistence_threshold": 200}}


@dataclass(frozen=True)
class Trials:
    """Where everything lies, and who we are."""

    output: Path
    model: Path
    shards: Path
    world: World

    def engine(
        self, model: Mapping[str, Any], template: Mapping[str, Any] = MIXED, **train: Any
    ) -> tuple[Any, Any, Any]:
        """Return an engine without weights yet, its batches, and the model's origin."""
        from data_prep.shards import ShardReader, read_manifest
        from training.config import ModelConfig, TrainConfig
        from training.models.source import find_model
        from training.order import Order
        from training.plan import make_plan
        from training.step.batches import Batches
        from training.zero.ds_config import deepspeed_config
        from training.zero.engine import ZeroEngine

        config = TrainConfig(
            **{"steps": 9, "global_batch_rows": GLOBAL_BATCH, "precision": "fp32", "clip_gradient_norm": None, **train}
        )
        manifest = read_manifest(self.shards)
        origin = find_model(ModelConfig.model_validate(model), self.shards, manifest)
        plan = make_plan(config, manifest, parameters=origin.parameters, world_size=self.world.size, seed=0)
        reader = ShardReader(self.shards, manifest, "train")
        batches = Batches(
            reader=reader,
            order=Order(
                row_count=plan.rows,
                global_batch_rows=plan.global_batch_rows,
                seed=0,
                data_digest=plan.data_digest,
            ),
            rank=self.world.rank,
            world_size=self.world.size,
            micro_batch_rows=plan.micro_batch_rows,
        )
        engine = ZeroEngine(origin.config, config, plan, deepspeed_config(dict(template), config, plan), self.world)
        return engine, batches, origin

    def keep(self, trial: str, tensors: Mapping[str, Any]) -> None:
        from safetensors.torch import save_file

        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        save_file(copies, self.output / f"{trial}-{self.world.rank}.safetensors")

    def keep_facts(self, trial: str, **facts: Any) -> None:
        if self.world.is_first:
            (self.output / f"{trial}.json").write_text(json.dumps(facts))

    def keep_parts(self, trial: str, engine: Any) -> None:
        kept: dict[str, Any] = {}
        for part in engine.parts():
            kept |= {f"{kind}.{part.name}": value.clone() for kind, value in part.values.items()}
        self.keep(trial, kept)
        self.keep_facts(trial, shapes={slot.name: slot.shape for slot in engine.layout()})


def take_step(engine: Any, batches: Any, step: int, learning_rate: float) -> float:
    batch = batches.for_step(step)
    return float(engine.step(step, batch.micro_batches, batch.trained_tokens, learning_rate, lambda stats: None).loss)


def dtypes_of(engine: Any) -> list[str]:
    return sorted({str(parameter.dtype) for parameter in engine.module.parameters()})


def gradients(trials: Trials, *, micro_batch_rows: int, checkpointing: str = "none") -> None:
    """Keep the gradients of one step: from zero, Adam's first moment is (1 - beta1) times the gradient."""
    engine, batches, origin = trials.engine(
        {"path": str(trials.model)}, micro_batch_rows=micro_batch_rows, activation_checkpointing=checkpointing
    )
    engine.start_from(origin.first_weights(0))
    loss = take_step(engine, batches, 0, LEARNING_RATE)
    name = f"gradients-{micro_batch_rows}{'' if checkpointing == 'none' else f'-{checkpointing}'}"
    trials.keep(name, {part.name: part.values["exp_avg"] / (1 - 0.9) for part in engine.parts()})
    trials.keep_facts(name, loss=loss, dtypes=dtypes_of(engine))


def first_loss(trials: Trials) -> None:
    """Keep the first weights and the first loss of a model made from nothing."""
    engine, batches, origin = trials.engine({"new": {"config": NEW_LLAMA}}, micro_batch_rows=2)
    engine.start_from(origin.first_weights(5))
    trials.keep("new", {part.name: part.values["master"].clone() for part in engine.parts()})
    trials.keep_facts("new-loss", loss=take_step(engine, batches, 0, LEARNING_RATE))
    take_step(engine, batches, 1, LEARNING_RATE)  # in its first two passes ZeRO-3 compares the layers' order over ranks
    with counted_waits(engine) as counted:
        take_step(engine, batches, 2, LEARNING_RATE)
    trials.keep_facts("waits", **counted)


@contextmanager
def counted_waits(engine: Any) -> Iterator[dict[str, list[str]]]:
    """Count what makes a host wait for its GPU, by where it is asked: single values of tensors, and whole lists.

    What DeepSpeed is told on the CPU (its norms, since they are known) would not be on a GPU either, and is left out.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from training.zero import gradient_work

    counted: dict[str, list[str]] = {"values": [], "lists": [], "norms": []}

    class Values(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default and not updating:
                place = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename][-2]
                counted["values"].append(f"{Path(place.filename).name}: {place.line}")
            return func(*args, **(kwargs or {}))

    def noted(key: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            counted[key].append("asked")
            return function(*arguments)

        return call

    def update(*arguments: Any, **settings: Any) -> None:
        updating.append(True)
        true_update(*arguments, **settings)

    updating: list[bool] = []
    true_update, engine.update = engine.update, update
    true_norms, true_list = gradient_work.norms_of, torch.Tensor.tolist
    gradient_work.norms_of = noted("norms", true_norms)
    engine.optimizer.get_grad_norm_direct = noted("norms", engine.optimizer.get_grad_norm_direct)
    torch.Tensor.tolist = noted("lists", true_list)  # type: ignore[method-assign]
    try:
        with Values():  # type: ignore[no-untyped-call]
            yield counted
    finally:
        engine.update, gradient_work.norms_of = true_update, true_norms
        torch.Tensor.tolist = true_list  # type: ignore[method-assign]


def low_precision(trials: Trials) -> None:
    """Keep what a bf16 engine holds beside its weights."""
    engine, _, _ = trials.engine({"path": str(trials.model)}, precision="bf16")
    trials.keep("buffers", dict(engine.module.named_buffers()))
    trials.keep_facts("bf16", dtypes=dtypes_of(engine))


def contract(trials: Trials) -> None:
    """Keep what ZeRO-3's adapter does to a model whose vectors do not divide by the number of ranks."""
    from training.checkpoints.async_save import SavePolicy
    from training.checkpoints.checkpoint import Checkpoints
    from training.train_state import TrainState

    new = {"new": {"model_type": "gpt2", "config": ODD_GPT2}}
    engine, batches, origin = trials.engine(new, micro_batch_rows=1, weight_decay=WEIGHT_DECAY)
    engine.start_from(origin.first_weights(0))
    take_step(engine, batches, 0, LEARNING_RATE)
    trials.keep_parts("one-step", engine)
    named = dict(engine.module.named_parameters())
    trials.keep("persistent", {name: parameter.data for name, parameter in named.items() if parameter.ds_persist})

    checkpoints = Checkpoints(
        trials.output / "checkpoints",
        {"run": 1},
        SavePolicy(keep_last=1, keep_every_steps=None, copy_bytes=1 << 30),
        first_weights=lambda: origin.first_weights(0),
    )
    checkpoints.complete(engine, TrainState(steps_done=SET_STEP))
    loaded, _, _ = trials.engine(new, micro_batch_rows=1, weight_decay=WEIGHT_DECAY)
    step = checkpoints.restore(loaded).steps_done
    trials.keep_parts("loaded", loaded)
    trials.keep_facts("restored", step=step)
    take_step(loaded, batches, step, LEARNING_RATE)
    trials.keep_parts("next-step", loaded)

    batch = batches.for_step(0).micro_batches[0]
    before = float(engine.loss(batch).summed.detach())
    for part in engine.parts(writing=True):
        part.values["master"].zero_()
    unrefreshed = float(engine.loss(batch).summed.detach())
    engine.sharding.refresh_weights()
    refreshed = float(engine.loss(batch).summed.detach())
    trained = int(batch.loss_mask.sum())
    trials.keep_facts("refresh", before=before, unrefreshed=unrefreshed, refreshed=refreshed, trained=trained)


def times(loss: Any, factor: float) -> Any:
    return replace(loss, summed=loss.summed * factor)


def refused_steps(trials: Trials, engine: Any, batches: Any, step: int) -> list[Any]:
    """Try a step twice that is refused, first with NaN in the last rank's gradients; return what all saw of it."""
    seen: list[Any] = []
    true_loss = engine.loss
    is_last = trials.world.rank == trials.world.size - 1
    batch = batches.for_step(step)

    def refuse(stats: Any) -> str:
        seen.append(stats)
        return "refused"

    for poison in (float("nan"), 1.0):
        factor = poison if is_last else 1.0
        engine.loss = lambda rows, factor=factor: times(true_loss(rows), factor)
        stats = engine.step(step, batch.micro_batches, batch.trained_tokens, LEARNING_RATE, refuse)
        assert stats.skipped == "refused"
    engine.loss = true_loss
    return seen


def guarded(trials: Trials) -> None:
    """Keep what refused steps leave behind, and what a step does after them; in one, a rank's gradients are NaN."""
    new = {"new": {"model_type": "gpt2", "config": ODD_GPT2}}
    tried, batches, origin = trials.engine(new, micro_batch_rows=1, clip_gradient_norm=0.5)
    tried.start_from(origin.first_weights(0))
    take_step(tried, batches, 0, LEARNING_RATE)
    trials.keep_parts("guarded-before", tried)
    seen = refused_steps(trials, tried, batches, 1)
    trials.keep_parts("guarded-after", tried)
    loss = take_step(tried, batches, 2, LEARNING_RATE)
    trials.keep_parts("guarded-next", tried)

    spared, _, _ = trials.engine(new, micro_batch_rows=1, clip_gradient_norm=0.5)
    spared.start_from(origin.first_weights(0))
    take_step(spared, batches, 0, LEARNING_RATE)
    expected = take_step(spared, batches, 2, LEARNING_RATE)
    trials.keep_parts("spared-next", spared)
    spared.start_from(origin.first_weights(0))
    take_step(spared, batches, 0, LEARNING_RATE)
    trials.keep_parts("begun-again", spared)
    trials.keep("guarded-seen", seen_tensors(seen))
    trials.keep_facts("guarded-losses", loss=loss, expected=expected)


def seen_tensors(seen: list[Any]) -> dict[str, Any]:
    import torch

    values = [[stats.loss, stats.gradient_norm] for stats in seen]
    return {"stats": torch.tensor(values, dtype=torch.float64)}


def node_copies(trials: Trials) -> None:
    """Keep what steps leave with a copy of the weights on each of two "nodes" of two ranks, and without.

    DeepSpeed makes the group of a node once a process: no engine with such copies may come after it.
    """
    released = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}  # at once: nothing is reused
    for size in (1, 2):
        zero = {**MIXED["zero_optimization"], **released, "zero_hpz_partition_size": size}
        engine, batches, origin = trials.engine(
            {"path": str(trials.model)}, {"zero_optimization": zero}, micro_batch_rows=1
        )
        losses = []
        for _ in range(2):  # the second time as after a rollback
            engine.start_from(origin.first_weights(0))
            losses += [take_step(engine, batches, step, LEARNING_RATE) for step in range(2)]
        trials.keep_parts(f"hpz-{size}", engine)
        engine.loss(batches.for_step(2).micro_batches[0])
        copies = sum(parameter.ds_secondary_tensor is not None for parameter in engine.module.parameters())
        trials.keep_facts(f"hpz-{size}-losses", losses=losses, copies=copies)


def main(output: str, model: str, shards: str) -> None:
    world = read_world()
    assert world is not None
    enter_world(world)
    from training.zero.engine import join_world, leave_world

    join_world(world)
    trials = Trials(Path(output), Path(model), Path(shards), world)
    for micro_batch_rows in FACTORINGS[world.size]:
        gradients(trials, micro_batch_rows=micro_batch_rows)
    for checkpointing in ("selective", "full"):
        gradients(trials, micro_batch_rows=2, checkpointing=checkpointing)
    first_loss(trials)
    low_precision(trials)
    contract(trials)
    guarded(trials)
    if world.size == 4:
        node_copies(trials)
    leave_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
