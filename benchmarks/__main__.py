"""Run one case: `python -m benchmarks NAME`."""

import importlib
import sys

CASES = (
    "privacy",
    "minhash",
    "near",
    "planning",
    "cleaning",
    "growth",
    "prep",
    "read",
    "wait",
    "ckpt_stall",
    "ckpt_bw",
    "resume",
    "coldstart",
    "export",
    "load",
    "step",
    "gpu_step",
)

if len(sys.argv) != 2 or sys.argv[1] not in CASES:
    sys.exit(f"usage: python -m benchmarks {{{','.join(CASES)}}}")
importlib.import_module(f"benchmarks.{sys.argv[1]}").main()
