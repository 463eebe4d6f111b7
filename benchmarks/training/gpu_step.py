"""The same as `step` on one GPU: a Llama of 1.2 billion parameters in bf16, rows of 4,096 tokens."""

from __future__ import annotations

from benchmarks.training.step import compare


def main() -> None:
    compare(("shardline", "shardline as before", "trainer"), "1b", "bf16", ranks=1, rounds=1)
