"""CPU-seconds and peak memory of a command and all its descendants, sampled from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a process tree took; memory is the largest sum of its processes' shares (PSS), and of any one of them."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    peak_one_mb: float


def pss_mb(pid: int) -> float:
    """Return a process's proportional share of memory."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def run_tree(arguments: list[str]) -> Usage:
    """Run `python ARGUMENTS` and watch its processes, those of daemons that it starts too."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    top = psutil.Process(process.pid)
    seen: dict[int, float] = {}
    known: dict[int, psutil.Process] = {process.pid: top}
    peak = peak_one = 0.0
    while process.poll() is None:
        total = 0.0
        try:
            known.update({child.pid: child for child in top.children(recursive=True)})
        except psutil.Error:
            break
        for pid, member in list(known.items()):
            try:
                times = member.cpu_times()
                seen[pid] = times.user + times.system
                share = pss_mb(pid)
                total, peak_one = total + share, max(peak_one, share)
            except (psutil.Error, OSError):
                known.pop(pid)
        peak = max(peak, total)
        time.sleep(SAMPLE_S)
    if process.wait():
        raise SystemExit(f"failed with {process.returncode}: {' '.join(arguments)}")
    return Usage(cpu_s=sum(seen.values()), wall_s=time.perf_counter() - began, peak_mb=peak, peak_one_mb=peak_one)


def data_folder() -> Path:
    folder = os.environ.get("SHARDLINE_TEST_DATA")
    if not folder:
        raise SystemExit("set SHARDLINE_TEST_DATA to the folder of real corpora (books/ is used)")
    return Path(folder)
