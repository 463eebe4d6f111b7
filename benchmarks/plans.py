"""The plan for an engine measured on its own, without a run: one row per rank and step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.plan import Plan


def plan_of(train: TrainConfig, ranks: int, row_tokens: int, steps: int) -> Plan:
    from training.plan import Plan

    return Plan(
        world_size=ranks,
        micro_batch_rows=1,
        accumulation_steps=1,
        global_batch_rows=ranks,
        row_tokens=row_tokens,
        rows=ranks * steps,
        trained_tokens=1,
        total_steps=steps,
        warmup_steps=0,
        parameters=0,
        trained_parameters=0,
        checkpoint_bytes=0,
        seed=0,
        data_digest="",
        config=train,
    )
