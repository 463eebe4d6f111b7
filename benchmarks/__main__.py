"""Run one case: `python -m benchmarks NAME`."""

import importlib
import sys

CASES = {  # by the folder that its file is in
    "benchmarks": ("growth", "growth_step", "serving"),
    "benchmarks.preparing": ("privacy", "minhash", "near", "planning", "cleaning", "prep", "read"),
    "benchmarks.checkpoints": ("ckpt_stall", "ckpt_bw", "resume", "coldstart", "export"),
    "benchmarks.training": ("wait", "load", "step", "hooks", "ce", "attention", "cpu", "gpu", "gpu_step"),
    "benchmarks.goodput": ("goodput",),
}
MODULES = {name: f"{folder}.{name}" for folder, names in CASES.items() for name in names}

OPTIONS = {"gpu": ("tiny",)}

if len(sys.argv) < 2 or sys.argv[1] not in MODULES or not set(sys.argv[2:]) <= {*OPTIONS.get(sys.argv[1], ())}:
    sys.exit(f"usage: python -m benchmarks {{{','.join(MODULES)}}}")
importlib.import_module(MODULES[sys.argv[1]]).main(*sys.argv[2:])
