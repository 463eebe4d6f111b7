"""CPU-seconds of variants that take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.machine import gpus_of_host, has_bf16

ROUNDS = 5


def cpu_seconds() -> float:
    """Return the user and system time of this process and its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def status_bytes(key: str) -> int:
    """Return a size from this process's /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def fresh_peak() -> int:
    """Let this process's peak memory (VmHWM) begin again; return the resident memory from which it does.

    Freed memory that glibc keeps is given back before: a peak that fits into it would not be seen.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def machine_facts() -> dict[str, Any]:
    """Return the load average and the versions that a figure was measured with."""
    packages = ("torch", "transformers", "deepspeed")
    return {"load": round(os.getloadavg()[0], 1), **{name: importlib.metadata.version(name) for name in packages}}


def precisions() -> tuple[str, ...]:
    """Return the precisions to measure here; on a CPU without instructions for bf16, fp32 alone, which is told."""
    if gpus_of_host() or has_bf16():
        return ("fp32", "bf16")
    print("bf16: not measured, this CPU has no instructions for it", flush=True)
    return ("fp32",)


def measure(case: str, variants: Mapping[str, Callable[[], object]], work_bytes: int) -> None:
    """Run each variant once unmeasured, then ROUNDS times in turns; print the median of each as a line of JSON."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    walls: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(ROUNDS + 1):
        for name, run in variants.items():
            cpu, wall = cpu_seconds(), time.perf_counter()
            run()
            if turn:
                taken[name].append(cpu_seconds() - cpu)
                walls[name].append(time.perf_counter() - wall)
    for name in variants:
        cpu = statistics.median(taken[name])
        line = {
            "case": case,
            "variant": name,
            "mb_per_cpu_s": round(work_bytes / 1e6 / cpu, 1),
            "cpu_s": round(cpu, 4),
            "cpu_s_range": [round(min(taken[name]), 4), round(max(taken[name]), 4)],
            "wall_s": round(statistics.median(walls[name]), 4),
            "mb": round(work_bytes / 1e6, 1),
        }
        print(json.dumps(line), flush=True)


def corpus_texts(name: str, chars: int | None = None) -> list[str]:
    """Return the files of a folder of real corpora as texts, whole or in pieces of `chars` characters."""
    folder = os.environ.get("SHARDLINE_TEST_DATA")
    if not folder:
        raise SystemExit("set SHARDLINE_TEST_DATA to the folder of real corpora (books/, peps/, gsm8k/)")
    texts = [path.read_text(encoding="utf-8") for path in sorted((Path(folder) / name).iterdir())]
    if chars is None:
        return texts
    return [text[begin : begin + chars] for text in texts for begin in range(0, len(text), chars)]


def size_of(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)
