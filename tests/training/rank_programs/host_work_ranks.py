"""ZeRO-3 with DeepSpeed's own work on the host and with ours, step for step: the bits of both.

host_work_ranks.py FOLDER ...
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaConfig

from cluster.environment import enter_world, read_world
from training.config import TrainConfig
from training.plan import Plan
from training.step.batches import MicroBatch, micro_batch_of, nothing_of
from training.zero import host_work
from training.zero.ds_config import deepspeed_config
from training.zero.engine import ZeroEngine, join_world, leave_world

ROW_TOKENS = 32
MODEL = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    attention_bias=True,
    attn_implementation="sdpa",
)
ZERO = {"stage": 3, "stage3_param_persistence_threshold": 400, "stage3_prefetch_bucket_size": 2000}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # keys of `train`, and of the template
    "all": ({"precision": "fp32"}, {}),
    "lora": ({"lora": {"rank": 3, "alpha": 6.0}, "activation_checkpointing": "full"}, {}),
    "offload": ({}, OFFLOAD),
    "frozen": ({"freeze": ["*embed*", "*.0.*", "model.norm.weight"], "activation_checkpointing": "selective"}, {}),
}


class NamedWeights:
    """Weights that depend on a parameter's name alone."""

    def part(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
        whole = torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(seed)) * 0.1
        return whole[start:stop].clone()

    def finish(self, elsewhere: Any) -> None:
        """Do nothing: no file is open."""


def micro(index: int, seed: int) -> MicroBatch:
    ids = torch.randint(0, 96, (2, ROW_TOKENS), generator=torch.Generator().manual_seed(seed))
    return micro_batch_of(ids, torch.ones(2, ROW_TOKENS, dtype=torch.bool), [[10, 22], [32]], index)


def batches(step: int, rank: int) -> list[MicroBatch]:
    """Return two micro batches, the second empty in every other step of rank 1."""
    made = [micro(2 * rank + number, 1000 * step + 10 * rank + number) for number in range(2)]
    return [made[0], nothing_of(made[1])] if step % 2 and rank == 1 else made


def plan_of(train: TrainConfig) -> Plan:
    return Plan(
        world_size=2,
        micro_batch_rows=2,
        accumulation_steps=2,
        global_batch_rows=8,
        row_tokens=ROW_TOKENS,
        rows=99,
        trained_tokens=9,
        total_steps=9,
        warmup_steps=0,
        parameters=1,
        trained_parameters=1,
        checkpoint_bytes=1,
        seed=0,
        data_digest="",
        config=train,
    )


class Trial:
    """One engine that takes steps, some refused, scores held-out rows and is filled again with an earlier state."""

    def __init__(self, rank: int, case: str) -> None:
        settings, zero = CASES[case]
        train = TrainConfig(steps=9, global_batch_rows=8, micro_batch_rows=2, clip_gradient_norm=0.5, **settings)
        plan, world = plan_of(train), read_world()
        assert world is not None
        template = {"zero_optimization": {**ZERO, **zero}}
        self.rank, self.seen = rank, list[str]()
        self.engine = ZeroEngine(MODEL, train, plan, deepspeed_config(template, train, plan), world)
        weights: Any = NamedWeights()
        if self.engine.frozen():
            self.engine.fill_frozen(weights)
        self.engine.start_from(weights)
        self.engine.check_isolation(batches(0, rank))

    def step(self, number: int, *, refuse: bool = False) -> None:
        mine = batches(number, self.rank)
        trained = torch.tensor(sum(len(batch.trained.targets) for batch in mine))
        dist.all_reduce(trained)
        stats = self.engine.step(number, mine, int(trained), 1e-2, lambda _: "refused" if refuse else None)
        self.seen += [stats.loss.hex(), stats.gradient_norm.hex()]

    def score(self) -> None:
        self.seen.append(repr(self.engine.validation_loss([micro(0, 77 + self.rank)])))

    def run(self) -> dict[str, Any]:
        self.step(0)
        self.step(1)
        self.score()
        self.step(2, refuse=True)
        self.step(3)
        saved = {part.name: {key: value.clone() for key, value in part.values.items()} for part in self.engine.parts()}
        again: list[list[str]] = []
        for _ in range(2):
            begun = len(self.seen)
            self.step(4)
            self.step(5, refuse=True)
            self.step(6)
            self.score()
            again.append(self.seen[begun:])
            if len(again) == 1:
                for part in self.engine.parts(writing=True):
                    for key, value in part.values.items():
                        value.copy_(saved[part.name][key])
                self.engine.continue_after(3)
        digest = hashlib.sha256()
        for part in self.engine.parts():
            for value in part.values.values():
                digest.update(value.float().contiguous().numpy().tobytes())
        is_replaced = self.engine.sharding.is_replaced  # type: ignore[attr-defined]
        self.engine.deepspeed.destroy()
        return {
            "seen": self.seen,
            "states": digest.hexdigest(),
            "is_same_again": again[0] == again[1],
            "is_replaced": is_replaced,
        }


def main() -> None:
    world = read_world()
    assert world is not None
    enter_world(world)
    join_world(world)
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    for devices in (set[str](), {"cpu"}):  # DeepSpeed's way first: ours replaces some of its functions for good
        host_work.TRIED_ON = devices
        for case, results in found.items():
            results.append(Trial(world.rank, case).run())
    (Path(sys.argv[1]) / f"rank-{world.rank}.json").write_text(json.dumps(found))
    leave_world()


if __name__ == "__main__":
    main()
