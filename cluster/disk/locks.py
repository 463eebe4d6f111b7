"""One process of a whole cluster at a time, by a lock file on the disk that all of them see.

The file says who holds it, as a line of JSON. A holder on this host is checked by its process. One that cannot be seen
from here (on another host, in another container) is checked by its touches of the file, one every BEAT_S. Clocks of two
hosts are never compared: ages are by the clock of the disk.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.disk.lock_holder import Holder
from cluster.errors import EXIT_USER_ACTION, ClusterError

log = logging.getLogger(__name__)

STALE_S = 120.0  # the holder of a lock that was not touched for so long is dead
BEAT_S = 10.0
SAME_JOB_STALE_S = 3 * BEAT_S  # for an earlier instance of this Slurm job: Slurm ended it before the requeue
POLL_S = 0.05, 2.0  # first and longest wait between two checks
ADVICE = "wait until it has ended, or end it, and run the command again"


@dataclass(frozen=True)
class LockFile:
    """A lock, and this process as its holder. Taken by creating the file, which only one process can."""

    path: Path
    stale_s: float = STALE_S
    holder: Holder = field(default_factory=Holder.here)

    @property
    def token(self) -> str:
        return self.holder.token

    def try_take(self) -> bool:
        """Take the lock if nobody holds it; return whether that worked."""
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(self.holder.text)
        except OSError:  # a full disk
            self.path.unlink()
            raise
        return True

    def break_stale(self, *, spare_living: bool = False, is_silent: bool = False) -> None:
        """Remove the lock if its process is seen to be dead, or if it was not touched for long.

        With `spare_living`, a lock whose process is seen to be alive stays however long it was not touched: the process
        is stopped, and will continue. With `is_silent`, the caller has watched the lock for long enough itself, and its
        date does not matter: a clock may have been set back. Only one process can win the rename; one that finds that
        it has moved a fresh lock puts it back.
        """
        owner = self.owner()
        if owner is None:
            return
        lives = Holder.read(owner).is_alive()
        if lives and spare_living:
            return
        if lives is not False and not is_silent and not self.is_untouched(Holder.read(owner)):
            return
        aside = self.path.with_name(f"{self.path.name}.{self.token}")
        try:
            self.path.rename(aside)
            if aside.read_text() != owner:
                os.link(aside, self.path)
        except (FileNotFoundError, FileExistsError):
            pass  # another process was faster
        aside.unlink(missing_ok=True)

    def is_untouched(self, holder: Holder) -> bool:
        """Return whether a lock was not touched for so long that its process must be dead."""
        age_s = self.age_s()
        return age_s is not None and age_s >= self.patience_s(holder)

    def patience_s(self, holder: Holder) -> float:
        """Return how long a holder that cannot be seen may leave the lock untouched."""
        is_same_job = holder.job is not None and holder.job == self.holder.job
        return min(self.stale_s, SAME_JOB_STALE_S) if is_same_job else self.stale_s

    def owner(self) -> str | None:
        """Return the text of the lock; None if nobody holds it. Opening it makes NFS ask the server."""
        try:
            return self.path.read_text()
        except FileNotFoundError:
            return None

    def age_s(self) -> float | None:
        """Return how long ago the lock was touched, by the clock of the disk it lies on; None if it is gone."""
        probe = self.path.with_name(f"{self.path.name}.{self.token}.clock")
        try:
            probe.touch()
            return probe.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return None
        finally:
            probe.unlink(missing_ok=True)

    def touched_ns(self) -> int | None:
        """Return when the lock was touched last; None if it is gone."""
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def touch(self) -> bool:
        """Show that this process is alive; return whether it still holds the lock. A removed file is created again."""
        owner = self.owner()
        if owner is None and self.path.parent.is_dir():
            return self.try_take() or self.owner() == self.holder.text
        if owner == self.holder.text:
            os.utime(self.path)
        return owner in (None, self.holder.text)

    def release(self) -> None:
        if self.owner() == self.holder.text:
            self.path.unlink(missing_ok=True)


@dataclass
class LockWatch:
    """Another process's lock, watched over time: whether it is touched."""

    lock: LockFile
    owner: str | None = None
    touched_ns: int | None = None
    since: float = 0.0  # when it was first seen in this state, by time.monotonic

    def is_silent(self) -> bool:
        """Return whether it was watched for so long without a touch that its process must be dead."""
        if self.owner is None or (self.lock.owner(), self.lock.touched_ns()) != (self.owner, self.touched_ns):
            return False
        return time.monotonic() - self.since >= self.lock.patience_s(Holder.read(self.owner))

    def living_holder(self) -> Holder | None:
        """Return the holder once it is seen to be alive; None if there is none, or if it is not known yet."""
        owner, touched_ns = self.lock.owner(), self.lock.touched_ns()
        if owner is None or touched_ns is None:
            return None
        holder = Holder.read(owner)
        lives = holder.is_alive()
        if lives or (owner == self.owner and touched_ns != self.touched_ns):
            return holder
        if owner != self.owner and lives is None:
            patience_s = self.lock.patience_s(holder)
            log.info(
                "%s: %s; checking for up to %g s whether it is alive", self.lock.path, holder.described(), patience_s
            )
        if (owner, touched_ns) != (self.owner, self.touched_ns):
            self.owner, self.touched_ns, self.since = owner, touched_ns, time.monotonic()
        return None

    def pause(self) -> None:
        time.sleep(POLL_S[1] if self.lock.stale_s > BEAT_S else POLL_S[0])


@contextmanager
def wait_for_lock(lock: LockFile, is_done: Callable[[], bool]) -> Iterator[bool]:
    """Wait for a lock, hold it and yield True; yield False, without it, once another process has done the work."""
    wait_s, longest_s = POLL_S
    lock.path.parent.mkdir(parents=True, exist_ok=True)
    while not is_done():
        if lock.try_take():
            break
        lock.break_stale()
        time.sleep(wait_s)
        wait_s = min(wait_s * 1.5, longest_s)
    else:
        yield False
        return
    with keep_touched(lock):
        yield not is_done()  # it may have been done between the check and the lock


@contextmanager
def hold_lock(lock: LockFile, advice: Callable[[Holder], str] = lambda holder: ADVICE) -> Iterator[None]:
    """Hold a lock, or raise ClusterError that names the process which holds it, without a change on disk.

    If the holder cannot be seen from here, it takes up to BEAT_S to know that it is alive, and `patience_s` that it is
    dead. If this process is stopped for so long that it is taken for dead and loses the lock, it ends at once with
    EXIT_USER_ACTION when it continues: two processes must not write into one folder.
    """
    lock.path.parent.mkdir(parents=True, exist_ok=True)
    watch = LockWatch(lock)
    while not lock.try_take():
        lock.break_stale(spare_living=True, is_silent=watch.is_silent())
        holder = watch.living_holder()
        if holder is not None:
            raise folder_in_use(lock.path.parent, holder, advice)
        if lock.owner() is not None:
            watch.pause()
    with keep_touched(lock, end_process):
        yield


def folder_in_use(folder: Path, holder: Holder, advice: Callable[[Holder], str]) -> ClusterError:
    """Return the error of a process that finds another one at work in a folder."""
    return ClusterError(f"{folder}: `{holder.command}` is already running here: {holder.described()}; {advice(holder)}")


@contextmanager
def keep_touched(lock: LockFile, on_loss: Callable[[LockFile], None] = lambda lock: None) -> Iterator[None]:
    """Touch a lock that this process holds every BEAT_S, and release it at the end."""
    stop = threading.Event()
    beat = threading.Thread(target=touch_until, args=(lock, stop, on_loss), daemon=True, name="lock")
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        lock.release()


def touch_until(lock: LockFile, stop: threading.Event, on_loss: Callable[[LockFile], None]) -> None:
    """Touch a lock until `stop` is set, also while the main thread waits for a server; call `on_loss` if it is lost."""
    while not stop.wait(min(BEAT_S, lock.stale_s / 4)):
        try:
            is_ours = lock.touch()
        except OSError as error:  # the disk does not answer, or is full: the lock may go stale meanwhile
            log.warning("%s: not touched: %s", lock.path, error)
            continue
        if not is_ours:
            return on_loss(lock)


def end_process(lock: LockFile) -> None:
    """End this process at once, whatever it is doing, because another one has taken its lock."""
    other = Holder.read(lock.owner() or "")
    log.error(
        "%s: taken by `%s`, %s, because this process did not touch it for too long; this process ends: two must not"
        " write into one folder",
        lock.path,
        other.command,
        other.described(),
    )
    os._exit(EXIT_USER_ACTION)
