"""All cases of training that a CPU can measure, in under 15 minutes on two quiet cores."""

from __future__ import annotations

from benchmarks.training import attention, ce, hooks
from benchmarks.training.step import VARIANTS, Comparison, compare


def main() -> None:
    ce.main()
    attention.main()
    hooks.main(rounds=2)
    for precision in ("fp32", "bf16"):
        compare(Comparison(case="step", variants=VARIANTS, shape="10m", precision=precision, rounds=1))
