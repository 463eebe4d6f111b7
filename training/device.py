"""What a rank computes on: its name, and the most memory that this process has taken so far."""

from __future__ import annotations

from pathlib import Path

import torch

CPU_FACTS, PROCESS_FACTS = Path("/proc/cpuinfo"), Path("/proc/self/status")


def device_name() -> str:
    """Return the model of this rank's GPU, or of the processor without one; "" if the system does not tell."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return value_of(CPU_FACTS, "model name")


def make_deterministic() -> None:
    """Make a GPU compute the same bits each time; torch warns of an operation that it has no such algorithm for.

    New memory is not filled, as this mode would do by itself: that serves to find code that reads it, and takes time.
    """
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def peak_memory_bytes() -> int | None:
    """Return the largest memory so far: tensors on this rank's GPU, or the whole process on a CPU; None if not known.

    Neither waits for the GPU.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    kilobytes = value_of(PROCESS_FACTS, "VmHWM").removesuffix(" kB")  # not ru_maxrss, which includes the parent's
    return int(kilobytes) * 1024 if kilobytes.isdecimal() else None


def value_of(file: Path, key: str) -> str:
    """Return the first value of a key in a file of `key: value` lines of the kernel; "" without one."""
    if not file.exists():
        return ""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""
