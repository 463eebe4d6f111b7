"""Full fine-tuning on one GPU: Llamas of 1.2 and 3.2 billion parameters, rows of 4,096 and 8,192 tokens, in bf16.

    python -m benchmarks gpu [tiny]

The first variant is transformers' Trainer with ZeRO-3 and sdpa, to which the ratios refer; then come ours, and ours
with one lever changed. Rows of the table go to $OUT/gpu.txt too as they are measured. After LIMIT_S seconds no further
variant is started, and what is left is told. `tiny` takes the same way with a tiny model, on a CPU if there is no GPU.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.training.step import Comparison, compare

LIMIT_S = 330.0
BOTH = ("trainer", "shardline")
LEVERS = (
    "shardline, dense mask",
    "shardline, all logits",
    "shardline, no leaf modules",
    "shardline, memory-efficient linear",
    "shardline, activation checkpointing",
    "shardline, deterministic",
)
CASES = (("1b", (*BOTH, *LEVERS)), ("3b", BOTH), ("1b-8k", BOTH), ("3b-8k", BOTH))


def main(option: str = "") -> None:
    if option not in ("", "tiny"):
        sys.exit("usage: python -m benchmarks gpu [tiny]")
    cases = (("tiny", (*BOTH, *LEVERS)),) if option else CASES
    ends = time.monotonic() + LIMIT_S
    folder = os.environ.get("OUT")
    with ExitStack() as files:
        table = files.enter_context((Path(folder) / "gpu.txt").open("w")) if folder else sys.stdout
        for shape, variants in cases:
            what = Comparison(
                case="gpu", variants=variants, shape=shape, precision="bf16", ranks=1, rounds=1, until=ends
            )
            compare(what, table)
