"""One training, export or import at a time in a run's folder.

The process that starts a host's ranks holds the lock for as long as it lives, and its ranks find in their environment
whose they are. Where Slurm, torchrun or DeepSpeed started the ranks, the first one holds it, and the others wait until
they see that it does. All of them come to the same verdict by themselves, before they have met and before a file of the
run is touched.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cluster.disk.locks import ADVICE, STALE_S, Holder, LockFile, Look, alone, at_work
from cluster.environment import World, lock_of_launcher
from cluster.errors import ClusterError
from cluster.heartbeat_files import launch_of
from cluster.paths import RunPaths

FIRST_RANK_S = STALE_S + 60.0  # in which the first rank has the lock, or has been refused


@contextmanager
def hold_run(paths: RunPaths, holder: Holder) -> Iterator[None]:
    """Hold the run's lock, or raise ClusterError that says who does and what to do.

    A folder that was made for the lock and that nothing else was written into goes again.
    """
    was_there = paths.root.exists()
    try:
        with alone(LockFile(paths.lock, holder=holder), lambda other: advice(paths, other)):
            yield
    finally:
        if not was_there:
            with suppress(OSError):
                paths.root.rmdir()


def advice(paths: RunPaths, other: Holder) -> str:
    """Return what to do about another process that works in the run."""
    if not other.command.endswith(" train"):
        return ADVICE
    root, stop = shlex.quote(str(paths.root)), shlex.quote(str(paths.stop_request))
    return f"see `shardline status {root}`; to save and stop it: touch {stop}; then run the command again"


@contextmanager
def held_for_rank(paths: RunPaths, world: World, command: str) -> Iterator[None]:
    """As a rank, be sure that the run is this launch's for as long as the context lasts, or raise ClusterError."""
    ours = lock_of_launcher()
    if ours is not None:
        check_ours(paths, ours)
        yield
    elif world.is_first:
        with hold_run(paths, Holder.here(command, launch_of(world))):
            yield
    else:
        wait_for_first_rank(paths, launch_of(world))
        yield


def check_ours(paths: RunPaths, ours: str) -> None:
    """Raise ClusterError unless the process that started this rank still holds the run."""
    owner = LockFile(paths.lock).owner()
    holder = Holder.read(owner or "")
    if holder.id != ours:
        raise ClusterError(
            f"{paths.lock}: no longer of the command that started this rank"
            + (f", but of {holder.described()}" if owner else "")
            + "; start the run again"
        )


def wait_for_first_rank(paths: RunPaths, launch: str, patience_s: float = FIRST_RANK_S) -> None:
    """Wait until the first rank of this launch holds the run. Raises ClusterError if somebody else does, and lives."""
    lock = LockFile(paths.lock)
    look = Look(lock)
    deadline = time.monotonic() + patience_s
    while (owner := lock.owner()) is None or Holder.read(owner).launch != launch:
        holder = look.living()
        if holder is not None and holder.launch != launch:
            raise at_work(paths.root, holder, lambda other: advice(paths, other))
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{paths.lock}: the first rank did not take it in {patience_s:.0f} s; look at its log, and whether all"
                " hosts see the same folder"
            )
        if owner is None and paths.root.is_dir():
            lock.age_s()  # makes and removes a file: NFS then looks for new names in the folder
        time.sleep(0.2)
