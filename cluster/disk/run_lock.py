"""One preparation, training, export or import at a time in a run's folder.

`shardline train` holds the lock for the ranks that it starts and gives them its id in their environment. Where Slurm,
torchrun or DeepSpeed started the ranks, rank 0 holds it, and the others wait until they see that it does. Each rank
finds out by itself, before the ranks connect and before a file of the run is touched.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cluster.disk.lock_holder import Holder
from cluster.disk.locks import ADVICE, STALE_S, LockFile, LockWatch, folder_in_use, hold_lock
from cluster.environment import lock_of_launcher
from cluster.errors import ClusterError
from cluster.heartbeats.heartbeat_files import launch_of
from cluster.network.world import World
from cluster.paths import RunPaths

FIRST_RANK_S = STALE_S + 60.0  # by then rank 0 holds the lock, or was refused


@contextmanager
def hold_run(paths: RunPaths, holder: Holder) -> Iterator[None]:
    """Hold the run's lock, or raise ClusterError that says which process does and what to do.

    A folder that was made for the lock is removed at the end if nothing else was written into it.
    """
    was_there = paths.root.exists()
    try:
        with hold_lock(LockFile(paths.lock, holder=holder), lambda other: advice(paths, other)):
            yield
    finally:
        if not was_there:
            with suppress(OSError):
                paths.root.rmdir()


def advice(paths: RunPaths, other: Holder) -> str:
    """Return what to do about another process that holds the run."""
    if not is_training(other):
        return ADVICE
    root, stop = shlex.quote(str(paths.root)), shlex.quote(str(paths.stop_request))
    return f"see `shardline status {root}`; to save and stop it: touch {stop}; then run the command again"


def is_training(holder: Holder) -> bool:
    return holder.command.endswith(" train")


def is_held_by_training(paths: RunPaths) -> bool | None:
    """Return whether the training that took the run's lock is alive; None if that cannot be seen from here."""
    holder = Holder.read(LockFile(paths.lock).owner() or "")
    return holder.is_alive() if is_training(holder) else None


@contextmanager
def hold_run_for_rank(paths: RunPaths, world: World, command: str) -> Iterator[None]:
    """As one rank, ensure that this launch holds the run while the context lasts, or raise ClusterError."""
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
            f"{paths.lock}: the command that started this rank no longer holds it"
            + (f", but {holder.described()} does" if owner else "")
            + "; if the YAML file now names another run or folder, change that back; then start the run again"
        )


def wait_for_first_rank(paths: RunPaths, launch: str, patience_s: float = FIRST_RANK_S) -> None:
    """Wait until rank 0 of this launch holds the run. Raises ClusterError if another living process does."""
    lock = LockFile(paths.lock)
    watch = LockWatch(lock)
    deadline = time.monotonic() + patience_s
    while (owner := lock.owner()) is None or Holder.read(owner).launch != launch:
        holder = watch.living_holder()
        if holder is not None and holder.launch != launch:
            raise folder_in_use(paths.root, holder, lambda other: advice(paths, other))
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{paths.lock}: rank 0 did not take it within {patience_s:.0f} s; read its log, and check that all"
                " hosts see the same folder"
            )
        if owner is None and paths.root.is_dir():
            lock.age_s()  # creates and removes a file, so that NFS reads the folder's names again
        time.sleep(0.2)
