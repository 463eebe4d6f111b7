"""A rank's heartbeat: what it does, in which step; and the process beside the ranks that watches over them.

A thread writes the beat to a file on the rank's own host, so that a slow disk never costs a step anything. A process
that is stopped, or a thread that keeps the interpreter to itself, stops the count. The same thread notices that the
host has no watchdog any more, and starts another one.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from cluster.environment import node_name
from cluster.heartbeats.heartbeat_files import (
    Beat,
    HostBeats,
    Process,
    RankFile,
    ended_before,
    host_path,
    launch_of,
    local_folders,
    lock_watchdog,
    note_starts,
    open_local_folder,
    read_local_beats,
    replace_file,
    stacks_path,
    starts_so_far,
    sweep_local_folders,
)
from cluster.launching.local_launcher import die_with_parent
from cluster.network.world import World
from cluster.paths import RunPaths
from cluster.processes import started_at
from cluster.terminal import console_descriptor

log = logging.getLogger(__name__)

BEAT_S = 1.0
STACKS = signal.SIGRTMIN + 7  # C libraries keep the first real-time signals, NCCL may take USR1, Slurm sends USR2
CHECKOUT = Path(__file__).resolve().parents[1]
GONE_S = 5.0  # without a watchdog, before a rank starts another one
FIRST_S = 120.0  # the same before the first one, which the host's first rank starts
MOST_STARTS = 5  # of the watchdog, on a host in a launch


class Heartbeat:
    """Writes this rank's beat until it is stopped, and lets STACKS write the stacks."""

    def __init__(self, paths: RunPaths, world: World) -> None:
        self.paths, self.world = paths, world
        self.position = ("load", 0)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.write_until_ended, name="heartbeat", daemon=True)
        self.stacks: IO[str] | None = None
        self.local: tuple[Path, RankFile] | None = None
        self.watchdog: Watchdog | None = None
        self.before: frozenset[Process] = frozenset()

    def start(self) -> None:
        """Begin to beat. Raises ClusterError if this host has no place for it."""
        folder = self.paths.heartbeats
        folder.mkdir(parents=True, exist_ok=True)
        self.local = open_local_folder(self.paths, launch_of(self.world), self.world.rank)
        if self.world.local_rank == 0:
            sweep_local_folders(self.local[0])
            launch = launch_of(self.world)
            self.before = ended_before(local_folders(self.paths, launch, node_name()), self.world.size, launch)
        self.stacks = stacks_path(folder, self.world.rank).open("w")
        faulthandler.register(STACKS, file=self.stacks, all_threads=True)
        self.thread.start()

    def start_watchdog(self, hang_timeout_s: float | None) -> None:
        """Have this host's ranks watched: its first rank starts the process, any of them starts it again."""
        watchdog = Watchdog(self.paths, self.world, hang_timeout_s, self.opened()[0])
        if self.world.local_rank == 0:
            watchdog.start()
        self.watchdog = watchdog

    def opened(self) -> tuple[Path, RankFile]:
        """Return this rank's local folder and its file there. Raises RuntimeError before `start` and after `stop`."""
        if self.local is None:
            raise RuntimeError("the heartbeat is not started: call start() first")
        return self.local

    def phase(self, name: str, step: int) -> None:
        """Say what this rank does from now on."""
        self.position = (name, step)

    def stop(self) -> None:
        """Write no more; the last beat says that there is nothing to wait for.

        The watchdog ends with this rank, perhaps before it has passed that on to the other hosts.
        """
        self.position = ("idle", self.position[1])
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()
        if self.local is not None and self.world.local_rank == 0:
            self.publish_last()
        if self.local is not None:
            self.local[1].close()
            self.local = None

    def publish_last(self) -> None:
        launch, host = launch_of(self.world), node_name()
        beats = read_local_beats(local_folders(self.paths, launch, host), self.world.size, launch, self.before)
        record = HostBeats(launch=launch, host=host, beats=beats).as_record()
        try:
            replace_file(host_path(self.paths.heartbeats, host), record, suffix=".last")
        except OSError as error:
            log.warning("the last heartbeat was not written: %s", error)

    def write_until_ended(self) -> None:
        file = self.opened()[1]
        pid, host = os.getpid(), node_name()
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
                file.write(beat)
                if self.watchdog is not None and not ending:
                    self.watchdog.check(time.monotonic())
                failing = False
            except (OSError, subprocess.SubprocessError) as error:
                if not failing:
                    log.warning("the heartbeat was not written: %s", error)
                failing = True
            self.ended.wait(BEAT_S)


class Watchdog:
    """The process that watches this host's ranks, as one rank sees it: it lives while its lock is held."""

    def __init__(self, paths: RunPaths, world: World, hang_timeout_s: float | None, folder: Path) -> None:
        self.folder = folder
        numbers = [str(world.size), str(world.local_size), launch_of(world)]
        timeout = [] if hang_timeout_s is None else [str(hang_timeout_s)]
        self.command = [sys.executable, "-m", "cluster.hangs.watchdog", str(paths.root.resolve()), *numbers, *timeout]
        self.process: subprocess.Popen[bytes] | None = None
        self.missed_since: float | None = None
        self.was_seen = self.has_given_up = False

    def start(self) -> None:
        """Start the process if none lives, as the first of this launch; an earlier one's may have met at this port.

        It dies with the thread that started it: of a rank, the main one.
        """
        for _ in range(10):  # another rank that has a look holds the lock for an instant
            descriptor = lock_watchdog(self.folder)
            if descriptor is not None:
                return self.launch(descriptor, before=0)
            time.sleep(0.05)

    def launch(self, descriptor: int, before: int) -> None:
        self.was_seen = True
        try:
            note_starts(descriptor, before + 1)
            self.process = subprocess.Popen(
                self.command,
                cwd=CHECKOUT,
                stdout=console_descriptor(),
                stderr=console_descriptor(),
                preexec_fn=die_with_parent,
                pass_fds=[descriptor],
            )
        finally:
            os.close(descriptor)  # the watchdog has it now

    def check(self, now: float) -> None:
        """Start the process again if none has lived for a while. Called at every beat."""
        if self.process is not None:
            self.process.poll()  # a dead child stays a zombie until it is asked for
        descriptor = lock_watchdog(self.folder)
        if descriptor is None:
            self.missed_since, self.was_seen = None, True
            return
        starts = starts_so_far(descriptor)
        self.missed_since = now if self.missed_since is None else self.missed_since
        if self.has_given_up or now - self.missed_since < (GONE_S if self.was_seen else FIRST_S):
            os.close(descriptor)
        elif starts >= MOST_STARTS:
            os.close(descriptor)
            self.has_given_up = True
            log.error(
                "the watchdog of %s has ended %d times: a hang of its ranks will not be found here; look above for why"
                " it ended, and start the run again",
                node_name(),
                starts,
            )
        else:
            log.warning("no watchdog on %s for %.0f s; starting one", node_name(), now - self.missed_since)
            self.missed_since = None
            self.launch(descriptor, starts)
