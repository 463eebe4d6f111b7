"""What the preflight asks torch: whether it computes on this host's GPUs, and what the network between hosts does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from cluster.environment import gpu_count, set_defaults
from cluster.network.world import World, rank_variables
from cluster.versions import library_version

ELEMENTS = 4 << 20  # float32: 16 MiB
NCCL_ELEMENTS = 16 << 20
ROUNDS = 3  # the fastest counts: other jobs use the network too


def probe_torch() -> dict[str, Any]:
    """Return on how many of this process's GPUs torch computes. Imports torch only if there is a GPU."""
    facts: dict[str, Any] = {"devices": gpu_count(), "version": library_version("torch"), "usable": 0, "problem": None}
    if facts["devices"] == 0:
        return facts
    if facts["version"] is None:
        return {**facts, "problem": "it is not installed"}
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        for device in range(torch.cuda.device_count()):
            ones = torch.ones(1024, 1024, device=f"cuda:{device}")
            facts["usable"] += int(float((ones @ ones).sum().item()) == 1024.0**3)
    except (RuntimeError, AssertionError) as error:
        lines = str(error).strip().splitlines()
        if facts["usable"] == 0 and not torch.cuda.is_available():
            return {**facts, "problem": lines[0] if lines else type(error).__name__}
    return facts


def gpu_warning() -> Iterator[str]:
    """Yield a line if training would run on the CPU though there is a GPU. Imports torch only if there is one."""
    if gpu_count() == 0:
        return
    import torch

    if not torch.cuda.is_available():
        yield (
            f"WARNING        there is a GPU, but torch {torch.__version__} cannot use it: this would train on the CPU;"
            " `shardline doctor` says more"
        )


def measure_network(world: World, within_s: float) -> Iterator[dict[str, Any]]:
    """Yield what this host, one rank of `world`, measures: by gloo, and then again with what NCCL did. Collective.

    The first facts come before NCCL is tried, which may hang where no timeout of ours is looked at.
    """
    set_defaults(rank_variables(world))
    import torch
    import torch.distributed as dist

    patience = timedelta(seconds=within_s)
    dist.init_process_group("gloo", rank=world.rank, world_size=world.size, timeout=patience)
    numbers = torch.full((ELEMENTS,), float(world.rank + 1))
    dist.all_reduce(numbers)
    rate, clock = ring_rate(world), time.time()  # after a barrier: all hosts read their clocks at once
    facts = {
        "is_sum_right": bool((numbers == world.size * (world.size + 1) / 2).all()),
        "from_previous_mb_per_s": rate,
        "clock": clock,
        "nccl": "none",
    }
    have_gpus = torch.tensor(int(torch.cuda.is_available()))
    dist.all_reduce(have_gpus, op=dist.ReduceOp.MIN)
    if have_gpus.item():
        yield {**facts, "nccl": "begun"}
        facts["nccl"] = nccl_rate(world, patience)
    yield facts
    dist.destroy_process_group()


def ring_rate(world: World) -> float:
    """Return how fast this rank receives from the one before it, in MB/s, while all ranks do so. Collective."""
    import torch
    import torch.distributed as dist

    outgoing, incoming = torch.zeros(ELEMENTS), torch.empty(ELEMENTS)
    times_s = []
    for _ in range(ROUNDS):
        dist.barrier()
        began = time.monotonic()
        sending = dist.isend(outgoing, (world.rank + 1) % world.size)
        dist.recv(incoming, (world.rank - 1) % world.size)
        times_s.append(time.monotonic() - began)
        if sending is not None:
            sending.wait()
    dist.barrier()
    return float(outgoing.nbytes / min(times_s) / 1e6)


def nccl_rate(world: World, patience: timedelta) -> float | str:
    """Return how fast the first GPUs of all hosts all-reduce, in MB/s, or what went wrong. Collective."""
    import torch
    import torch.distributed as dist

    try:
        group = dist.new_group(backend="nccl", timeout=patience)
        numbers = torch.full((NCCL_ELEMENTS,), 1.0, device="cuda:0")
        dist.all_reduce(numbers, group=group)
        if float(numbers[0].item()) != world.size:
            return "it gave a wrong sum"
        began = time.monotonic()
        dist.all_reduce(numbers, group=group)
        torch.cuda.synchronize()
    except (RuntimeError, dist.DistBackendError) as error:
        return str(error).strip().splitlines()[0]
    return float(numbers.nbytes * 2 * (world.size - 1) / world.size / (time.monotonic() - began) / 1e6)
