"""What a step takes of the host: 32 thin layers with 8 tokens, so that there is hardly any arithmetic.

CPU-seconds are the least of the steps, summed over both ranks. With nothing persistent, every matrix is gathered, as
those of a large model are; by default the thin ones are below DeepSpeed's threshold and stay whole. `bare` is a loop
whose ranks know nothing of each other.
"""

from __future__ import annotations

from benchmarks.training.step import Comparison, compare

VARIANTS = ("trainer", "shardline", "trainer, nothing persistent", "shardline, nothing persistent", "bare")


def main(rounds: int = 3) -> None:
    compare(Comparison(case="hooks", variants=VARIANTS, shape="thin", precision="bf16", rounds=rounds, steps=20))
