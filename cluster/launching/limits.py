"""What the ranks of a host may use of it: open files, cores, and the CPUs next to their GPU."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

PCI = Path("/sys/bus/pci/devices")
CPU = Path("/sys/devices/system/cpu")


def set_limits() -> None:
    """Raise the number of open files as far as this process may, and have crashes of it and its children leave no core.

    A core is as large as the rank's memory, and a run of many ranks has many connections and shards open.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit, soft in ((resource.RLIMIT_NOFILE, hard), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(limit, (soft, resource.getrlimit(limit)[1]))
        except (OSError, ValueError) as error:  # macOS and some containers refuse what they show
            log.debug("limit %d stays: %s", limit, error)


def keep_to_share(number: int, count: int, gpus: Sequence[str] = ()) -> None:
    """Let this process run on its share of the CPUs that it may use now, as one of `count` processes that share them.

    Neighbours get neighbouring cores, and the threads of a core stay together. Nothing is changed where there are fewer
    CPUs than processes. `gpus` are the PCI addresses of the processes' GPUs: those whose GPUs are next to the same CPUs
    share these.
    """
    allowed = os.sched_getaffinity(0)
    share = share_near_gpu(number, [cpus_near(gpu) & allowed for gpu in gpus]) if len(gpus) == count else None
    if share := share or share_of(number, count, allowed):
        os.sched_setaffinity(0, share)


def share_of(number: int, count: int, cpus: set[int]) -> list[int]:
    """Return the CPUs of one of `count` processes that share these; none if there are fewer CPUs."""
    ordered = sorted(cpus, key=lambda cpu: (*core_of(cpu), cpu))
    size = len(ordered) // count
    return ordered[number * size : (number + 1) * size]


def share_near_gpu(number: int, near: Sequence[set[int]]) -> list[int]:
    """Return the share of the process of this number; `near` are the CPUs next to each one's GPU.

    Empty if these are unknown for a GPU, overlap with those of another, or do not suffice.
    """
    groups = {frozenset(cpus) for cpus in near}
    if not all(groups) or sum(len(group) for group in groups) != len(frozenset().union(*groups)):
        return []
    members = [other for other, cpus in enumerate(near) if cpus == near[number]]
    return share_of(members.index(number), len(members), near[number])


def cpus_near(gpu: str) -> set[int]:
    """Return the CPUs of the NUMA node that a PCI device is attached to; none where the kernel does not tell."""
    try:
        spelled = (PCI / gpu / "local_cpulist").read_text().strip()
        ranges = [part.partition("-") for part in spelled.split(",") if part]
        return {cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)}
    except (OSError, ValueError):
        return set()


def core_of(cpu: int) -> tuple[int, int]:
    """Return the package and the core that a CPU is of; where the kernel does not tell, each CPU is a core."""
    topology = CPU / f"cpu{cpu}" / "topology"
    try:
        return int((topology / "physical_package_id").read_text()), int((topology / "core_id").read_text())
    except (OSError, ValueError):
        return 0, cpu
