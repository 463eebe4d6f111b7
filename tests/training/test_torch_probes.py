"""What hosts measure together: real gloo, between processes of this machine."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from cluster.machine import hold_port
from cluster.network.world import World
from cluster.preflight.deadline import answers
from cluster.preflight.network_checks import check_network
from training.torch_probes import gpu_warning, measure_network, probe_torch

HOSTS = ["node0", "node1", "node2"]
PATIENCE_S = 200  # of a machine that does other things


def measure(rank: int, port: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)  # in a forked process, torch's threads are not there
    world = World(rank=rank, size=len(HOSTS), local_rank=0, local_size=1, master=("127.0.0.1", port))
    return list(measure_network(world, within_s=PATIENCE_S))


def test_hosts_measure_their_network_and_the_sum_is_right() -> None:
    with hold_port() as held:
        asked = {host: partial(measure, rank, held.getsockname()[1]) for rank, host in enumerate(HOSTS)}
        found = answers(asked, within_s=PATIENCE_S)
    measured = {host: states[-1] for host, states in found.items()}
    assert [state["is_sum_right"] for state in measured.values()] == [True] * 3
    clocks = [state["clock"] for state in measured.values()]
    assert max(clocks) - min(clocks) < 5
    findings = check_network(HOSTS, measured, {}, floor_mb_per_s=0)
    assert [(f.level, f.found.split(";")[0]) for f in findings] == [("ok", "all-reduce of 3 hosts is right")]


def test_a_rank_that_finds_nobody_gives_up_in_time() -> None:
    with hold_port() as held:
        world = World(rank=1, size=2, local_rank=0, local_size=1, master=("127.0.0.1", held.getsockname()[1]))
        found = answers({"network": lambda: list(measure_network(world, within_s=1))}, within_s=PATIENCE_S)
    assert "Error" in found["network"]["error"]  # torch's own words


def test_without_a_gpu_nothing_is_asked_of_torch() -> None:
    if torch.cuda.is_available():
        return
    assert probe_torch()["problem"] is None
    assert list(gpu_warning()) == []
