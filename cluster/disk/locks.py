"""One process of a whole cluster at a time, by a lock file on the disk that all of them see.

The file says who holds it, as a line of JSON. A holder on this host is judged by its process; one that cannot be seen
from here (another host, another container) by whether it touches the file, which it does every BEAT_S. No clock is
compared with another's: ages are by the clock of the disk.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from cluster.environment import host_name, slurm_job
from cluster.errors import EXIT_USER_ACTION, ClusterError

log = logging.getLogger(__name__)

STALE_S = 120.0  # a lock that was not touched for so long is of a dead process
BEAT_S = 10.0
SAME_JOB_STALE_S = 3 * BEAT_S  # of this Slurm job, whose earlier ranks Slurm has ended before it started it again
POLL_S = 0.05, 2.0  # first and longest wait between two looks
ADVICE = "wait until it has ended, or end it, and run the command again"


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock. `started` is the process's start in clock ticks since `boot`: numbers are given again.

    `launch` sets the ranks that were started together apart from others, where a rank holds the lock for all of them.
    """

    host: str
    boot: str
    namespace: int
    pid: int
    started: int
    command: str
    job: str | None = None
    launch: str = ""
    id: str = ""

    @classmethod
    def here(cls, command: str = "", launch: str = "") -> Holder:
        """Return this process as a holder; each call gives another one."""
        return cls(
            host=host_name(),
            boot=boot_id(),
            namespace=pid_namespace(),
            pid=os.getpid(),
            started=alive_since(os.getpid()) or 0,
            command=command,
            job=slurm_job(),
            launch=launch,
            id=uuid.uuid4().hex[:12],
        )

    @classmethod
    def read(cls, text: str) -> Holder:
        """Return the holder that a lock's text tells; of a text that was cut short by a crash, nobody that is known."""
        try:
            values = json.loads(text)
            return cls(**{f.name: values[f.name] for f in fields(cls)})
        except (ValueError, KeyError, TypeError):
            return cls(host="an unknown host", boot="", namespace=0, pid=0, started=0, command="another process")

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def token(self) -> str:
        """The holder's name in the names of files."""
        return f"{self.host}-{self.pid}-{self.id}"

    def is_alive(self) -> bool | None:
        """Tell whether the process is alive; None if that cannot be seen from here."""
        if (self.boot, self.namespace) != (boot_id(), pid_namespace()):  # a host may change its name
            return None
        return alive_since(self.pid) == self.started

    def described(self) -> str:
        """Return the process for people."""
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def alive_since(pid: int) -> int | None:
    """Return when a process here was started; None if there is none, or it has ended and waits to be reaped."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if facts[0] in "ZX" else int(facts[19])


@dataclass(frozen=True)
class LockFile:
    """A lock, and who we are. Taken by creating the file, which only one process can."""

    path: Path
    stale_s: float = STALE_S
    holder: Holder = field(default_factory=Holder.here)

    @property
    def token(self) -> str:
        return self.holder.token

    def try_take(self) -> bool:
        """Take the lock if nobody has it."""
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
        """Remove the lock if it was not touched for long, or if its process is seen to be dead.

        With `spare_living`, one whose process is seen to be alive stays however long it was not touched: the process
        is stopped, and will go on. With `is_silent`, somebody has watched it for long enough: its date tells nothing
        where a clock was set back. The rename can be won by one process only; who finds that it has moved a fresh lock
        instead puts it back.
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
            pass  # another process was quicker
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
        """Return the text of the lock; None if nobody has it. Opening it makes NFS ask the server."""
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
        """Show that we are alive; return whether the lock is still ours. A file that was removed is made again."""
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
class Look:
    """What is seen of a lock over time."""

    lock: LockFile
    owner: str | None = None
    touched_ns: int | None = None
    since: float = 0.0  # when it was seen like this first, by time.monotonic

    def is_silent(self) -> bool:
        """Return whether it was watched for so long, and not touched, that its process must be dead."""
        if self.owner is None or (self.lock.owner(), self.lock.touched_ns()) != (self.owner, self.touched_ns):
            return False
        return time.monotonic() - self.since >= self.lock.patience_s(Holder.read(self.owner))

    def living(self) -> Holder | None:
        """Return the holder once it is seen to be alive; None if there is none, or that is not known yet."""
        owner, touched_ns = self.lock.owner(), self.lock.touched_ns()
        if owner is None or touched_ns is None:
            return None
        holder = Holder.read(owner)
        lives = holder.is_alive()
        if lives or (owner == self.owner and touched_ns != self.touched_ns):
            return holder
        if owner != self.owner and lives is None:
            patience_s = self.lock.patience_s(holder)
            log.info("%s: %s; looking up to %g s whether it lives", self.lock.path, holder.described(), patience_s)
        if (owner, touched_ns) != (self.owner, self.touched_ns):
            self.owner, self.touched_ns, self.since = owner, touched_ns, time.monotonic()
        return None

    def pause(self) -> None:
        time.sleep(POLL_S[1] if self.lock.stale_s > BEAT_S else POLL_S[0])


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
def alone(lock: LockFile, advice: Callable[[Holder], str] = lambda holder: ADVICE) -> Iterator[None]:
    """Hold a lock, or raise ClusterError that names the process which holds it, and changes nothing.

    That a holder which cannot be seen from here is alive takes up to BEAT_S to know; that it is dead, the patience.
    A lock that is lost, since this process was stopped for so long that it was taken for dead, ends this process at
    once with EXIT_USER_ACTION: two must not write into one folder.
    """
    lock.path.parent.mkdir(parents=True, exist_ok=True)
    look = Look(lock)
    while not lock.try_take():
        lock.break_stale(spare_living=True, is_silent=look.is_silent())
        holder = look.living()
        if holder is not None:
            raise at_work(lock.path.parent, holder, advice)
        if lock.owner() is not None:
            look.pause()
    with kept(lock, end_process):
        yield


def at_work(folder: Path, holder: Holder, advice: Callable[[Holder], str]) -> ClusterError:
    """Return the error of somebody who comes second."""
    return ClusterError(f"{folder}: `{holder.command}` is at work here already: {holder.described()}; {advice(holder)}")


@contextmanager
def kept(lock: LockFile, on_loss: Callable[[LockFile], None] = lambda lock: None) -> Iterator[None]:
    """Touch a lock that this process has taken, and release it at the end."""
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
    """Show that the owner of a lock is alive, also while it waits for a server."""
    while not stop.wait(min(BEAT_S, lock.stale_s / 4)):
        try:
            is_ours = lock.touch()
        except OSError as error:  # the disk does not answer, or is full: others then judge by what they see
            log.warning("%s: not touched: %s", lock.path, error)
            continue
        if not is_ours:
            return on_loss(lock)


def end_process(lock: LockFile) -> None:
    """End this process, whatever it does, since another one has its lock."""
    other = Holder.read(lock.owner() or "")
    log.error(
        "%s: taken by `%s`, %s, while this process did not touch it for long; this one ends: two must not write into"
        " one folder",
        lock.path,
        other.command,
        other.described(),
    )
    os._exit(EXIT_USER_ACTION)
