"""What a step takes of the host: 32 thin layers with 8 tokens, so that there is hardly any arithmetic.

CPU-seconds are the least of the steps, summed over both ranks. With nothing persistent, every matrix is gathered, as
those of a large model are; by default the thin ones are below DeepSpeed's threshold and stay whole. `bare` is a loop
whose ranks know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measuring import precisions
from benchmarks.training.step import Comparison, compare, judge, ratio_of

BAR = 0.6
SHORT = ("trainer", "shardline", "bare")
VARIANTS = (*SHORT, "trainer, nothing persistent", "shardline, nothing persistent")


def main(variants: Sequence[str] = VARIANTS, rounds: int = 3) -> None:
    what = Comparison(
        case="hooks", variants=variants, shape="thin", precision=precisions()[-1], rounds=rounds, steps=20
    )
    ratio = ratio_of(compare(what), "cpu_s", "shardline", "trainer")
    judge("hooks, CPU of ours by the Trainer's", ratio, BAR, at_most=True)
