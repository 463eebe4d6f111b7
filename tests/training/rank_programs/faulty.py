"""One rank of a run in which something goes wrong, for test_faults and test_hangs.

    python tests/training/rank_programs/faulty.py FAULT RANK FIRST_STEP LAST_STEP train RUN.yaml ...

The rank is a rank of the real command; in those steps (from 0) the fault happens to it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cluster.environment import fork_server_socket, read_world
from launch.__main__ import main
from launch.fork_server import serve_forks


def nan(loss: Any) -> Any:
    return replace(loss, summed=loss.summed * float("nan"))


def spike(loss: Any) -> Any:
    return replace(loss, summed=loss.summed * 50.0)


def freeze(loss: Any) -> Any:
    """Keep the interpreter: no other thread of this process runs."""
    sys.setswitchinterval(1e9)
    while True:
        pass


def leave(loss: Any) -> Any:
    os._exit(3)


def fail(loss: Any) -> Any:
    raise ValueError("a mistake of this rank alone")


IN_FORWARD: dict[str, Callable[[Any], Any]] = {
    "nan": nan,
    "spike": spike,
    "freeze": freeze,
    "leave": leave,
    "fail": fail,
}
SLOW_SAVE_S = 8.0
STEP_S = 0.1
SEEN_STEP_S = 0.3  # a beat comes each second: the watchdog must have seen some steps before one hangs


def plant(fault: str, first: int, last: int) -> None:
    """Let a fault happen to this process in some steps."""
    from training.checkpoints.checkpoint import Checkpoints
    from training.zero.engine import ZeroEngine

    true_step, true_loss, true_offer = ZeroEngine.step, ZeroEngine.loss, Checkpoints.offer
    now = {"step": -1}

    def step(engine: ZeroEngine, step: int, *arguments: Any) -> Any:
        now["step"] = step
        time.sleep(SEEN_STEP_S if fault == "freeze" else STEP_S)
        return true_step(engine, step, *arguments)

    def loss(engine: ZeroEngine, batch: Any) -> Any:
        value = true_loss(engine, batch)
        return IN_FORWARD[fault](value) if first <= now["step"] <= last else value

    def offer(checkpoints: Checkpoints, engine: ZeroEngine, progress: Any, *, due: bool) -> None:
        if due:
            time.sleep(SLOW_SAVE_S)
        true_offer(checkpoints, engine, progress, due=due)

    if fault == "slow-save":
        Checkpoints.offer = offer  # type: ignore[assignment, method-assign]
    else:
        ZeroEngine.step, ZeroEngine.loss = step, loss  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    if (descriptor := fork_server_socket()) is not None:
        serve_forks(descriptor)  # returns in the ranks
    fault, rank, first, last, *arguments = sys.argv[1:]
    world = read_world()
    assert world is not None
    if world.rank == int(rank):
        os.environ.update({"RANK": str(world.rank)})
        from cluster.environment import enter_world

        enter_world(world)
        plant(fault, int(first), int(last))
    sys.exit(main(arguments))
