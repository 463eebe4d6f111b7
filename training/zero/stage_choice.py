"""The stage of a run on the machines it has, and what differs from the arithmetic of its last attempt."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cluster.config_loading import validate
from cluster.errors import ClusterError, ConfigError
from cluster.machine import free_memory_bytes
from cluster.network.world import World
from training.config import TrainConfig
from training.costs.buckets import sized_buckets
from training.costs.choice import DEFAULT, Choice, MachineMemory, choose
from training.costs.memory import Layout
from training.costs.shapes import ModelShape
from training.plan import Plan
from training.zero.ds_config import buckets_in, read_template, stored_as, template_for

Decision = TypeVar("Decision")
Record = Mapping[str, Any]
ROUNDING = {  # keys of `train` that decide in which order sums are taken, with their defaults
    "deterministic": True,
    "compile": "none",
    "attention": "auto",
    "loss_chunk_tokens": None,
    "micro_batch_rows": 1,
}
ZERO = "ZeRO"  # what the journal calls the stage with its offload
STAGE_TEXT = re.compile(r"stage ([123]) with offload (\w+)")


def layout_of(
    train: TrainConfig, plan: Plan, choice: Choice, shape: ModelShape, machine: MachineMemory | None
) -> Layout:
    """Return the layout of a run, for its memory; as on GPUs, where buckets are sized from the model."""
    has_copies = train.hpz and machine is not None and machine.ranks_per_host < plan.world_size
    return Layout(
        ranks=plan.world_size,
        stage=choice.stage,
        micro_batch_rows=plan.micro_batch_rows,
        row_tokens=plan.row_tokens,
        checkpointing=train.activation_checkpointing,
        offload=choice.offload,
        weight_bytes=2 if train.precision == "bf16" else 4,
        is_compiled=train.compile == "layers",
        loss_chunk_tokens=train.loss_chunk_tokens,
        hpz_ranks=machine.ranks_per_host if machine is not None and has_copies else None,
        buckets=buckets_in(template_of(train, choice), sized_buckets(shape)),
    )


def choice_of(
    train: TrainConfig, plan: Plan, shape: ModelShape, machine: MachineMemory | None, before: Record | None
) -> Choice:
    """Return where a run's states lie: as its template says, else as chosen. `before` is the run's recorded plan."""
    if train.deepspeed is not None:
        named = stored_as(read_template(train.deepspeed))
        return Choice(stage=named[0], offload=named[1], why=f"as {train.deepspeed} says")
    open_layout = layout_of(train, plan, Choice(stage=DEFAULT[0], offload=DEFAULT[1], why=""), shape, machine)
    of_auto = 3 if train.hpz else None
    stage = of_auto if train.zero_stage == "auto" else train.zero_stage
    chosen = choose(shape, open_layout, machine, stage=stage, before=None if before is None else zero_of(before))
    is_for_hpz = train.hpz and train.zero_stage == "auto"
    return replace(chosen, why=chosen.why.replace("train.zero_stage says", "train.hpz needs")) if is_for_hpz else chosen


def template_of(train: TrainConfig, choice: Choice) -> dict[str, Any]:
    """Return the template of a run: the one that it names, or the one of what was chosen."""
    return template_for(choice.stage, choice.offload) if train.deepspeed is None else read_template(train.deepspeed)


def with_hpz(template: dict[str, Any], train: TrainConfig, world: World) -> dict[str, Any]:
    """Return the template with hpZ over each node's ranks if the run asks for it. Collective if it does.

    Raises ConfigError where it cannot be: another stage, weights on the host, or nodes that differ.
    """
    if not train.hpz or world.size == world.local_size:
        return template
    if stored_as(template)[0] != 3 or stored_as(template)[1] == "all":
        raise ConfigError("train.hpz: needs ZeRO stage 3 with weights on the GPU; set zero_stage: 3, or remove hpz")
    ranks = torch.tensor([world.local_size, -world.local_size])
    ranks = ranks.to("cuda") if torch.cuda.is_available() else ranks
    dist.all_reduce(ranks, op=dist.ReduceOp.MAX)
    most, least = ranks.tolist()
    if most != -least:
        raise ConfigError(f"train.hpz: nodes have {-least} to {most} ranks; use nodes of equally many, or remove hpz")
    return {**template, "zero_optimization": {**template["zero_optimization"], "zero_hpz_partition_size": most}}


def local_memory(ranks: int) -> MachineMemory | None:
    """Return the memory of this process's GPU and of its host with so many ranks; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return MachineMemory(gpu=gpu, host=free_memory_bytes(), ranks_per_host=ranks)


def least_memory(world: World) -> MachineMemory | None:
    """Return the least memory of all ranks' GPUs and hosts, the same on every rank; None without GPUs. Collective."""
    mine = local_memory(world.local_size)
    if mine is None:
        return None
    found = torch.tensor([mine.gpu, mine.host, -mine.ranks_per_host], dtype=torch.float64, device="cuda")
    dist.all_reduce(found, op=dist.ReduceOp.MIN)
    gpu, host, ranks = found.tolist()
    return MachineMemory(gpu=gpu, host=host, ranks_per_host=-int(ranks))


def decided_by_rank0(decide: Callable[[], Decision], world: World) -> Decision:
    """Return what the first rank decides, the same on every rank whatever the others would have read. Collective."""
    made: list[Any] = [decide() if world.is_first else None]
    dist.broadcast_object_list(made, src=0)
    decided: Decision = made[0]
    return decided


def recorded(path: Path) -> Record | None:
    """Return the plan that a run's last attempt left; None without one that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def zero_of(record: Record) -> Record | None:
    """Return the stage and the offload that a plan recorded; None where a template of its own set them.

    Runs from before there was a choice have none recorded: without a template they had the default.
    """
    if "zero" in record:
        return dict(record["zero"])
    is_default = dict(record.get("config") or {}).get("deepspeed") is None
    return {"stage": DEFAULT[0], "offload": DEFAULT[1]} if is_default else None


def rounding_changes(before: Record, now: Record) -> dict[str, tuple[Any, Any]]:
    """Return, for each choice that rounds sums otherwise than the last attempt did, what it was and is."""
    then_zero, now_zero = zero_of(before), zero_of(now)
    pairs: dict[str, tuple[Any, Any]] = {}
    if then_zero is not None and now_zero is not None:
        pairs[ZERO] = stage_text(then_zero), stage_text(now_zero)
    then, here = (dict(record.get("config") or {}) for record in (before, now))
    pairs |= {f"train.{key}": (then.get(key, old), here.get(key, old)) for key, old in ROUNDING.items()}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def stage_text(zero: Record) -> str:
    return f"stage {zero['stage']} with offload {zero['offload']}"


def before_changes(record: Record, events: Iterable[Record]) -> Record:
    """Return the plan that an earlier attempt recorded: this one, without the changes that the events since tell.

    Raises ClusterError for a change that `rounding_changes` of this version does not write.
    """
    config, zero = dict(record.get("config") or {}), record.get("zero")
    changes = [event["changed"] for event in events if event["event"] == "rounding"]
    for key, (was, _) in ((key, pair) for changed in reversed(changes) for key, pair in changed.items()):
        stage = STAGE_TEXT.fullmatch(str(was)) if key == ZERO else None
        if stage is not None:
            zero = {"stage": int(stage[1]), "offload": stage[2]}
        elif key.removeprefix("train.") in ROUNDING:
            config[key.removeprefix("train.")] = was
        else:
            raise ClusterError(
                f"attempts.jsonl: {key} was {was}: not known to this version; replay with the one of then"
            )
    return {**record, "config": config, **({} if zero is None else {"zero": zero})}


def train_as(train: TrainConfig, then: Record, asked: Collection[str]) -> TrainConfig:
    """Return the settings with what decides their rounding as a plan recorded it, except for the keys asked for.

    Raises ConfigError if what was asked for does not go with the recorded settings.
    """
    config, zero = dict(then.get("config") or {}), zero_of(then)
    values = {key: config.get(key, old) for key, old in ROUNDING.items()}
    if zero is not None and not {"deepspeed", "zero_stage"} & set(asked):
        is_as_template = train.deepspeed is not None and stored_as(read_template(train.deepspeed)) == (
            zero["stage"],
            zero["offload"],
        )
        if not is_as_template:
            values |= {"deepspeed": None, "zero_stage": zero["stage"], "hpz": train.hpz and zero["stage"] == 3}
    if values["compile"] == "layers" and train.activation_checkpointing == "selective":
        values["activation_checkpointing"] = "full"  # the two do not go together; this one changes no gradient
    changed = {key: value for key, value in values.items() if key not in asked}
    source = "the settings of the attempt that took the step, with those of -o"
    return validate(TrainConfig, {**train.model_dump(), **changed}, source)
