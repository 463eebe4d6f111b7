"""Ranks of the tests' own programs, forked from one process that has imported what they all import.

    python tests/rank_server.py

Importing torch, transformers and DeepSpeed takes longer than most programs. Runs of the real command never come here:
their ranks are processes of their own.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.environment import child_environment
from cluster.launching.exit_codes import combined
from cluster.launching.local_launcher import LocalRanks, RankNews, Seats, die_with_parent
from cluster.machine import hold_port
from cluster.network.world import World, rank_variables

ROOT = Path(__file__).resolve().parents[1]


class RankServer:
    """The process that forks, seen from the tests: it starts with the first world and serves all that follow."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def run(self, command: Sequence[str], size: int) -> int:
        """Run a program and its arguments as so many ranks; return one exit code for all, as the launcher does."""
        process = self.process or self.start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"command": list(command), "size": size}) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())
        except BaseException:  # a test that timed out: its ranks end with the server, and the next world gets another
            self.stop()
            raise

    def start(self) -> subprocess.Popen[str]:
        changes = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, __file__]
        environment = child_environment(changes)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        return self.process

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class ForkedRank:
    """A rank, with the part of subprocess.Popen that the launcher's LocalRanks waits for."""

    def __init__(self, command: Sequence[str], world: World) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            live(command, world)

    def poll(self) -> int | None:
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode

    def end(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)


def live(command: Sequence[str], world: World) -> None:
    """Be a rank: run the program as Python would, and end."""
    code: Any = 1
    try:
        die_with_parent()
        os.environ.update(rank_variables(world))
        sys.argv = list(command)
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as ending:
        code = ending.code or 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def threads() -> list[str]:
    """Return the threads beside the first one; jemalloc, which pyarrow brings, makes its own anew after a fork."""
    found = []
    for path in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # one that has ended since
            found.append((path.name, (path / "comm").read_text().strip()))
    return [name for number, name in found if number != str(os.getpid()) and name != "jemalloc_bg_thd"]


def run_world(command: Sequence[str], size: int) -> int:
    assert not (lost := threads()), f"imports have started threads, which a fork would lose: {lost}"
    held = hold_port()
    master = ("127.0.0.1", int(held.getsockname()[1]))
    ranks: list[Any] = []
    try:
        for rank in range(size):
            world = World(rank=rank, size=size, local_rank=rank, local_size=size, master=master)
            ranks.append(ForkedRank(command, world))
        return combined(LocalRanks(Seats(first=0, size=size, master=master), RankNews(), ranks).wait())
    finally:
        for forked in ranks:
            forked.end()
        held.close()


def main() -> None:
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what ranks print is no answer
    from launch.ranks.imports import lean_imports

    with lean_imports():
        import training.checkpoints.checkpoint
        import training.train_rank
        import training.zero.engine  # noqa: F401
    for line in sys.stdin:
        answers.write(f"{run_world(**json.loads(line))}\n")
        answers.flush()


if __name__ == "__main__":
    main()
