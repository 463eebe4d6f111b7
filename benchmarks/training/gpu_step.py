"""The same as `step` on one GPU: a Llama of 1.2 billion parameters in bf16, rows of 4,096 tokens."""

from __future__ import annotations

from benchmarks.training.step import Comparison, compare


def main() -> None:
    variants = ("shardline", "shardline as before", "trainer")
    compare(Comparison(case="gpu_step", variants=variants, shape="1b", precision="bf16", ranks=1, rounds=1))
