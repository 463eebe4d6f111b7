"""`shardline train` on several hosts without Slurm: here two, each a process with the variables of a TrainJob's pod."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.machine import hold_port, host_name

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def start_hosts(run: Any, port: int) -> list[subprocess.Popen[str]]:
    return [
        run.launch(
            [
                "env", "PET_NNODES=2", f"PET_NODE_RANK={number}", "PET_NPROC_PER_NODE=1",
                "PET_MASTER_ADDR=127.0.0.1", f"PET_MASTER_PORT={port}",
                sys.executable, "-m", "launch", "train", "--restart", str(run.yaml),
            ]
        )
        for number in range(2)
    ]  # fmt: skip


@pytest.fixture
def held_port() -> Iterator[socket.socket]:
    with hold_port() as held:
        yield held


def test_two_hosts_restart_together_after_a_dead_rank_and_stop_together_when_one_is_asked_to(
    short_run: Callable[..., Any], held_port: socket.socket
) -> None:
    run = short_run(steps=10**6, schedule="constant", warmup_fraction=0.0, save_every_steps=3)
    hosts = start_hosts(run, held_port.getsockname()[1])
    run.watch(hosts[1], lambda run: run.paths.lock.exists() and run.ranks(hosts[1]))  # rank 0 holds the run
    run.signal_rank(hosts[1], 0, signal.SIGKILL)
    run.watch(hosts[1], lambda run: len(run.steps()) > 4)
    hosts[1].send_signal(signal.SIGTERM)
    assert [host.wait() for host in hosts] == [75, 75], run.log.read_text()
    assert run.steps() == list(range(1, len(run.steps()) + 1))
    assert [end["exit_code"] for end in run.ends()] == [75]
    assert len(run.events("launch")) == 2
    assert [start["world_size"] for start in run.events("start")] == [2]
    said, killed = run.log.read_text(), f"rank 1 ({host_name()}) was killed by SIGKILL"
    assert "rank 1 ended with signal SIGKILL" in said and f"{killed}; the ranks' logs: {run.paths.logs}" in said
    assert [event["reason"] for event in run.events("no-start")] == [killed]
    assert "Traceback" not in said
