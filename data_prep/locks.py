"""One process of a whole cluster at a time, by a lock file on the disk that all of them see."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import ClusterError

log = logging.getLogger(__name__)

STALE_S = 120.0  # a lock that was not touched for so long is of a dead process: its owner touches it every BEAT_S
BEAT_S = 10.0
POLL_S = 0.05, 2.0  # first and longest wait between two looks


def process_name(pid: int) -> str:
    """Return host, namespace, number and start of a process here; numbers are used again, so all that names it."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    state, start = after_name[0], after_name[19]
    return f"{socket.gethostname()}-{namespace}-{pid}-{'ended' if state == 'Z' else start}"


def new_token() -> str:
    return f"{process_name(os.getpid())}-{uuid.uuid4().hex[:12]}"


def is_alive(token: str) -> bool | None:
    """Tell whether the process that made a token is alive; None if that cannot be seen from here."""
    name = token.rpartition("-")[0]
    host_and_namespace, _, pid = name.rpartition("-")[0].rpartition("-")
    if not pid or not process_name(os.getpid()).startswith(f"{host_and_namespace}-"):
        return None
    try:
        return process_name(int(pid)) == name
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class LockFile:
    """A lock and the token that says whose it is. Taken by creating the file, which only one process can."""

    path: Path
    stale_s: float = STALE_S
    token: str = field(default_factory=new_token)

    def try_take(self) -> bool:
        """Take the lock if nobody has it."""
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(self.token)
        except OSError:  # a full disk
            self.path.unlink()
            raise
        return True

    def break_stale(self) -> None:
        """Remove the lock if it was not touched for long, or if its process is seen to be dead.

        The rename can be won by one process only; who finds that it has moved a fresh lock instead puts it back.
        """
        owner = self.owner()
        age_s = self.age_s()
        if owner is None or age_s is None or (age_s < self.stale_s and is_alive(owner) is not False):
            return
        aside = self.path.with_name(f"{self.path.name}.{self.token}")
        try:
            self.path.rename(aside)
            if aside.read_text() != owner:
                os.link(aside, self.path)
        except (FileNotFoundError, FileExistsError):
            pass  # another process was quicker
        aside.unlink(missing_ok=True)

    def owner(self) -> str | None:
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

    def release(self) -> None:
        if self.owner() == self.token:
            self.path.unlink(missing_ok=True)


@contextmanager
def locked(lock: LockFile, is_done: Callable[[], bool]) -> Iterator[bool]:
    """Wait for a lock and hold it: True; or hold nothing, if another process has done what it guards: False."""
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
    with kept(lock):
        yield not is_done()  # it may have been done between the look and the lock


@contextmanager
def alone(lock: LockFile, what: str) -> Iterator[None]:
    """Hold a lock, or raise ClusterError that names the process which holds it.

    A lock of this host's is judged by its process, one of another host's by whether it is touched: that takes up to
    BEAT_S while its process lives, `stale_s` after it died.
    """
    lock.path.parent.mkdir(parents=True, exist_ok=True)
    seen: tuple[str, int] | None = None
    while not lock.try_take():
        lock.break_stale()
        owner, touched_ns = lock.owner(), lock.touched_ns()
        if owner is None or touched_ns is None:
            continue
        if is_alive(owner) or (seen is not None and seen[0] == owner and seen[1] != touched_ns):
            host, _, pid, *_ = owner.rsplit("-", 4)
            raise ClusterError(
                f"{lock.path.parent}: {what} is at work here already: process {pid} on {host}; wait until it has "
                "ended, or end it, and run the command again"
            )
        if seen is None or seen[0] != owner:
            log.info("%s: of another host; looking up to %g s whether its process lives", lock.path, lock.stale_s)
            seen = owner, touched_ns
        time.sleep(POLL_S[1] if lock.stale_s > BEAT_S else POLL_S[0])
    with kept(lock):
        yield


@contextmanager
def kept(lock: LockFile) -> Iterator[None]:
    """Touch a lock that this process has taken, and release it at the end."""
    stop = threading.Event()
    beat = threading.Thread(target=touch_until, args=(lock, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        lock.release()


def touch_until(lock: LockFile, stop: threading.Event) -> None:
    """Show that the owner of a lock is alive, also while it waits for a server."""
    while not stop.wait(min(BEAT_S, lock.stale_s / 4)):
        try:
            os.utime(lock.path)
        except FileNotFoundError:
            return
