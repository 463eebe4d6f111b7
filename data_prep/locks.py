"""One process of a whole cluster at a time, by a lock file on the disk that all of them see."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

STALE_S = 120.0  # a lock that was not touched for so long is of a dead process: its owner touches it every BEAT_S
BEAT_S = 10.0
POLL_S = 0.05, 2.0  # first and longest wait between two looks


@dataclass(frozen=True)
class LockFile:
    """A lock and the token that says whose it is. Taken by creating the file, which only one process can."""

    path: Path
    stale_s: float = STALE_S
    token: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}")

    def try_take(self) -> bool:
        """Take the lock if nobody has it."""
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as stream:
            stream.write(self.token)
        return True

    def break_stale(self) -> None:
        """Remove the lock if it is stale.

        The rename can be won by one process only; who finds that it has moved a fresh lock instead puts it back.
        """
        owner = self.owner()
        age_s = self.age_s()
        if age_s is None or age_s < self.stale_s:
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
    stop = threading.Event()
    beat = threading.Thread(target=touch_until, args=(lock, stop), daemon=True)
    beat.start()
    try:
        yield not is_done()  # it may have been done between the look and the lock
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
