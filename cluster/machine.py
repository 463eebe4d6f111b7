"""What this machine has: its GPUs, CPUs, free memory, name and ports."""

from __future__ import annotations

import os
import socket
from pathlib import Path

CPUS = Path("/proc/cpuinfo")
OUT_OF_MEMORY = ": out of memory, beyond what the job or this host has"  # how a process was killed
GROUPS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
AVX_512 = {"avx512bw", "avx512vl", "avx512dq"}  # what torch's bf16 products want of an x86 CPU


def host_name() -> str:
    return socket.gethostname()


def hold_port() -> socket.socket:
    """Return a socket that holds a free port for a program that will listen there; close it when that has ended.

    The system gives the port to nobody else meanwhile. The program must set SO_REUSEADDR, as torch's store does, and
    as Python's servers do.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("", 0))  # on all addresses, as the program will
    return holder


def gpus_of_host() -> int:
    """Return how many NVIDIA GPUs the kernel shows to this process; some machines show them in one place only."""
    return max(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))), len(list(Path("/dev").glob("nvidia[0-9]*"))))


def cpu_count() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def out_of_memory_kills(groups_of_process: Path = GROUPS, root: Path = CGROUPS) -> int:
    """Return how many processes of this one's memory cgroup the kernel has killed for want of memory.

    0 where the kernel does not tell.
    """
    try:
        lines = groups_of_process.read_text().splitlines()
        groups = {name: group.lstrip("/") for _, name, group in (line.split(":", 2) for line in lines)}
        if "memory" in groups:  # version 1
            path = root / "memory" / groups["memory"] / "memory.oom_control"
        else:
            path = root / groups.get("", "") / "memory.events"
        facts = dict(line.split() for line in path.read_text().splitlines())
        return int(facts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0


def has_bf16(cpus: Path = CPUS) -> bool:
    """Return whether this CPU multiplies matrices in bf16 as fast as in fp32, or faster.

    Without these instructions torch has no fast way: a product takes up to a hundred times as long as in fp32.
    """
    features = {word for line in cpus.read_text().splitlines() for word in features_in(line)}
    return "bf16" in features or features >= AVX_512


def features_in(line: str) -> list[str]:
    """Return the features that a line of /proc/cpuinfo names, if it is one that does: x86's or Arm's."""
    name, _, words = line.partition(":")
    return words.split() if name.strip() in ("flags", "Features") else []


def free_memory_bytes() -> int:
    """Return how much memory this process can still allocate: what the host, and its cgroup's limit, leave free."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    own = next((line[3:] for line in GROUPS.read_text().splitlines() if line.startswith("0::")), "/")
    group = CGROUPS / own.lstrip("/")
    groups = [one for one in (group, *group.parents) if one.is_relative_to(CGROUPS)]  # a limit may be that of the job
    return min([free, *(left for one in groups if (left := left_in_group(one)) is not None)])


def left_in_group(group: Path) -> int | None:
    """Return the bytes that a memory cgroup (version 2) can still allocate; None if it has no limit."""
    limit = group / "memory.max"
    if not limit.is_file() or limit.read_text().strip() == "max":
        return None
    pages = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    cached = int(pages["inactive_file"]) + int(pages["active_file"])  # given back when memory is asked for
    return max(0, int(limit.read_text()) - int((group / "memory.current").read_text()) + cached)
