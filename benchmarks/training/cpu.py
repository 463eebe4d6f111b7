"""All cases of training that a CPU can measure, in under 15 minutes on two quiet cores."""

from __future__ import annotations

import time

from benchmarks import growth_step
from benchmarks.measuring import precisions
from benchmarks.training import attention, ce, hooks, step


def main() -> None:
    began = time.monotonic()
    ce.main()
    attention.main()
    hooks.main(hooks.SHORT, rounds=2)
    for precision in precisions():
        step.compare_shape("10m", precision, rounds=1)
    growth_step.main()
    print(f"cpu: {time.monotonic() - began:.0f} s")
