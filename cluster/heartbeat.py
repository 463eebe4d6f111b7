"""A rank's sign of life: what it does, in which step; and the process beside the ranks that watches over them.

    run/heartbeats/rank-00003.json      rank, host, process, phase, step and a count that grows while the process lives
    run/heartbeats/rank-00003.stacks    Python stacks of all its threads, after the signal STACKS

A thread writes the file, so that a slow disk never costs a step anything. It opens and closes it each time: on NFS
other hosts see what was closed. A process that is stopped, or a thread that keeps the interpreter to itself, stops the
count.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from cluster.environment import World, host_name
from cluster.local_launcher import die_with_parent
from cluster.paths import RunPaths

log = logging.getLogger(__name__)

BEAT_S = 1.0
STACKS = signal.SIGRTMIN + 7  # C libraries keep the first real-time signals, NCCL may take USR1, Slurm sends USR2
CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One reading of a rank's file; those of an earlier launch are told by their `launch`.

    `started` is the process's start in clock ticks: its number may be given again.
    """

    launch: str
    rank: int
    host: str
    pid: int
    started: int
    phase: str
    step: int
    count: int


def launch_of(world: World) -> str:
    """Return what sets the ranks that were started together apart from those before them: where they meet."""
    return f"{world.master[0]}:{world.master[1]}"


def beat_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.json"


def write_beat(path: Path, beat: Beat) -> None:
    """Write a rank's file, whole; not made durable, as it is about this moment."""
    partial = path.with_suffix(".new")
    partial.write_text(json.dumps(asdict(beat)))
    partial.rename(path)


def stacks_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.stacks"


def started_at(pid: int) -> int | None:
    """Return when a process of this host was started, in clock ticks since boot; None if there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


class Heartbeat:
    """Writes this rank's file until it is stopped, and lets STACKS write the stacks."""

    def __init__(self, paths: RunPaths, world: World) -> None:
        self.folder, self.world = paths.heartbeats, world
        self.position = ("load", 0)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.write_on, name="heartbeat", daemon=True)
        self.stacks: IO[str] | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stacks = stacks_path(self.folder, self.world.rank).open("w")
        faulthandler.register(STACKS, file=self.stacks, all_threads=True)
        self.thread.start()

    def phase(self, name: str, step: int) -> None:
        """Say what this rank does from now on."""
        self.position = (name, step)

    def stop(self) -> None:
        """Write no more; the last word is that there is nothing to wait for."""
        self.position = ("idle", self.position[1])
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()

    def write_on(self) -> None:
        pid, host = os.getpid(), host_name()
        started, count, ending, failing = started_at(pid) or 0, 0, False, False
        while not ending:
            ending = self.ended.is_set()
            count += 1
            phase, step = self.position
            beat = Beat(
                launch=launch_of(self.world),
                rank=self.world.rank,
                host=host,
                pid=pid,
                started=started,
                phase=phase,
                step=step,
                count=count,
            )
            try:
                write_beat(beat_path(self.folder, self.world.rank), beat)
                failing = False
            except OSError as error:  # the run may outlive it; the watchdog cannot write then either, and blames nobody
                if not failing:
                    log.warning("the heartbeat was not written: %s", error)
                failing = True
            self.ended.wait(BEAT_S)


def start_watchdog(paths: RunPaths, world: World, hang_timeout_s: float | None) -> subprocess.Popen[bytes] | None:
    """Start the process that watches this host's ranks; only the host's first rank does, and it dies with that rank."""
    if world.local_rank != 0:
        return None
    paths.heartbeats.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "cluster.hangs.watchdog",
        str(paths.root.resolve()),
        str(world.size),
        launch_of(world),
    ]
    if hang_timeout_s is not None:
        command.append(str(hang_timeout_s))
    return subprocess.Popen(command, cwd=CHECKOUT, preexec_fn=die_with_parent)
