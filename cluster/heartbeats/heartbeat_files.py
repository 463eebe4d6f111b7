"""Where heartbeats are: one small file per rank on its own host, and one file per host on the shared disk.

    /dev/shm/shardline-UID-KEY/rank-00003       a rank's last beat; KEY stands for the run, the host and the launch
    /dev/shm/shardline-UID-KEY/watchdog.lock    locked by the host's watchdog for as long as it lives
    run/heartbeats/host-NAME.json               the beats of a host's ranks, written by its watchdog
    run/heartbeats/all-ranks.json               the beats of all hosts, written by one of the watchdogs
    run/heartbeats/rank-00003.stacks            Python stacks of a rank's threads, after the signal STACKS

A thousand ranks that each wrote to the shared disk, and were read there by every host, would keep its metadata server
busy. Whatever lies under these names, reading it never raises: it is a beat, or it is not one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.environment import node_name
from cluster.errors import ClusterError
from cluster.network.world import World
from cluster.paths import RunPaths
from cluster.processes import started_at

PHASES = ("load", "data", "forward-backward", "step", "save", "idle")  # in the order of a step
RANK_FILE_BYTES = 1024
MOST_BYTES = 64 << 20  # of a shared file; 100,000 ranks fit
OLD_S = 86400.0
Process = tuple[int, int]  # its number, and its start in clock ticks
IN_THE_WAY = {errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ELOOP}


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a rank does at one moment; `launch` tells it from the beats of an earlier launch.

    `started` is the process's start in clock ticks: the kernel may give its number to another process. `count` grows
    while the process lives.
    """

    launch: str
    rank: int
    host: str
    pid: int
    started: int
    phase: str
    step: int
    count: int

    @property
    def process(self) -> Process:
        return self.pid, self.started


def launch_of(world: World) -> str:
    """Return what tells the ranks that were started together from those before them: where they meet.

    A fixed port may give it to two launches: what a reader finds when it begins is told by `ended_before`.
    """
    return f"{world.master[0]}:{world.master[1]}"


def stacks_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.stacks"


def host_path(folder: Path, host: str) -> Path:
    return folder / f"host-{host}.json"


def read_small(path: Path, most_bytes: int) -> bytes | None:
    """Return a regular file's bytes; None for what is missing, larger, unreadable, or not a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would block
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with open(descriptor, "rb", closefd=False) as stream:
            content = stream.read(most_bytes + 1)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return content if len(content) <= most_bytes else None


def parsed_object(content: bytes | None) -> dict[str, Any]:
    """Return a JSON object; an empty one for anything else."""
    try:
        values = json.loads(content or b"")
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return {}
    return values if isinstance(values, dict) else {}


def parsed_beat(values: object, world_size: int) -> Beat | None:
    """Return the beat that a JSON value holds, or None."""
    if not isinstance(values, dict) or values.keys() != Beat.__dataclass_fields__.keys():
        return None
    numbers = [values[name] for name in ("rank", "pid", "started", "step", "count")]
    if any(type(number) is not int or number < 0 for number in numbers):
        return None
    if not isinstance(values["host"], str) or not isinstance(values["launch"], str):
        return None
    if values["phase"] not in PHASES or values["rank"] >= world_size:
        return None
    return Beat(**values)


@dataclass(frozen=True, kw_only=True)
class HostBeats:
    """The beats of one host's ranks, as its file on the shared disk holds them.

    `written` counts how often the host's watchdog has written it: a file that changes is of a watchdog that lives, even
    if none of its ranks moves.
    """

    launch: str
    host: str
    beats: Sequence[Beat]
    written: int = 0

    def as_record(self) -> dict[str, Any]:
        common = ("launch", "host")
        beats = [{key: value for key, value in asdict(beat).items() if key not in common} for beat in self.beats]
        return {"launch": self.launch, "host": self.host, "written": self.written, "ranks": beats}

    @classmethod
    def from_record(cls, values: object, world_size: int) -> HostBeats | None:
        """Return what a JSON value holds, without what is no beat in it; None if it is not a host's file."""
        if not isinstance(values, dict) or not isinstance(values.get("ranks"), list):
            return None
        launch, host, written = values.get("launch"), values.get("host"), values.get("written")
        if not isinstance(launch, str) or not isinstance(host, str) or type(written) is not int:
            return None
        whole = [{**beat, "launch": launch, "host": host} for beat in values["ranks"] if isinstance(beat, dict)]
        beats = [beat for each in whole if (beat := parsed_beat(each, world_size)) is not None]
        return cls(launch=launch, host=host, beats=beats, written=written)


def replace_file(path: Path, values: object, suffix: str = ".new") -> None:
    """Write a JSON file that readers see whole; not made durable, as it is about this moment.

    What is no file of ours under one of the two names is moved out of the way, and a removed folder is made again: else
    the run would go unwatched. If the folder that it lies in is gone too, that is an OSError.
    """
    partial = path.with_name(path.name + suffix)
    content = json.dumps(values, separators=(",", ":")).encode()
    try:
        write_whole(partial, content)
        partial.rename(path)
    except FileNotFoundError:
        path.parent.mkdir(exist_ok=True)
        write_whole(partial, content)
        partial.rename(path)
    except OSError as error:
        if error.errno not in IN_THE_WAY:
            raise
        for taken in (partial, path):
            if os.path.lexists(taken):
                taken.rename(path.with_name(f"in-the-way-{os.getpid()}-{taken.name}"))
        write_whole(partial, content)
        partial.rename(path)


def write_whole(path: Path, content: bytes) -> None:
    """Write a regular file; a FIFO or a symbolic link is an OSError, and nothing blocks."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    finally:
        os.close(descriptor)


class RankFile:
    """A rank's file on its own host. Its bytes are allocated when it is opened: a full disk later stops no beat."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self.descriptor = self.opened()

    def opened(self) -> int:
        descriptor = os.open(self.folder / f"rank-{self.rank:05d}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(descriptor, 0, RANK_FILE_BYTES)
        return descriptor

    def write(self, beat: Beat) -> None:
        """Overwrite the file in place; the checksum tells a reader that it came in the middle of this.

        It is made again if somebody has removed it: systemd empties /dev/shm of a user who logs out (RemoveIPC).
        """
        text = json.dumps(asdict(beat)).encode()
        content = b"%08x %s" % (zlib.crc32(text), text)
        if len(content) > RANK_FILE_BYTES:
            raise OSError(f"a heartbeat of {len(content)} bytes, a rank's file holds {RANK_FILE_BYTES}")
        if os.fstat(self.descriptor).st_nlink == 0:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            removed, self.descriptor = self.descriptor, self.opened()
            os.close(removed)
        os.pwrite(self.descriptor, content.ljust(RANK_FILE_BYTES), 0)

    def close(self) -> None:
        os.close(self.descriptor)


def read_rank_file(path: Path, world_size: int) -> Beat | None:
    """Return a rank's last beat; None if there is none, or it is just being written."""
    checksum, _, text = (read_small(path, RANK_FILE_BYTES) or b"").rstrip().partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    return parsed_beat(parsed_object(text), world_size)


def local_folders(paths: RunPaths, launch: str, host: str) -> list[Path]:
    """Return where this launch's ranks may leave their beats on this host, the first choice first."""
    key = hashlib.sha256(f"{paths.root.resolve()}\0{launch}\0{host}".encode()).hexdigest()[:16]
    name = f"shardline-{os.getuid()}-{key}"
    return [base / name for base in dict.fromkeys((Path("/dev/shm"), Path(tempfile.gettempdir())))]


def open_local_folder(paths: RunPaths, launch: str, rank: int) -> tuple[Path, RankFile]:
    """Return the first folder that a rank can write to on its host, and its file there. Raises ClusterError."""
    reasons = []
    for folder in local_folders(paths, launch, node_name()):
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.lstat().st_uid != os.getuid() or not folder.is_dir():
                raise PermissionError(0, "belongs to somebody else")
            return folder, RankFile(folder, rank)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror or error}")
    raise ClusterError(
        f"no heartbeat can be written on {node_name()} ({'; '.join(reasons)}): a rank needs {RANK_FILE_BYTES} bytes in"
        " one of these; make room, or point TMPDIR to a folder of this host"
    )


def read_local_beats(
    folders: Iterable[Path], world_size: int, launch: str, without: Collection[Process] = ()
) -> list[Beat]:
    """Return the last beat of each rank of a launch on this host, by rank; not those of the processes `without`."""
    found: dict[int, Beat] = {}
    for folder in folders:
        for path in sorted(folder.glob("rank-*")):
            beat = read_rank_file(path, world_size)
            if beat is not None and beat.launch == launch and beat.process not in without:
                found[beat.rank] = beat
    return [found[rank] for rank in sorted(found)]


def ended_before(folders: Iterable[Path], world_size: int, launch: str) -> frozenset[Process]:
    """Return the processes that left a beat here and live no more, as one that begins to watch has to know them.

    A launch that meets at the same address and port as an earlier one finds its files: of a rank that is on another
    host now, or of one that found no room in the first folder then.
    """
    left = (beat.process for folder in folders for beat in read_local_beats([folder], world_size, launch))
    return frozenset(process for process in left if started_at(process[0]) != process[1])


def sweep_local_folders(folder: Path, now: float | None = None) -> None:
    """Remove this user's folders beside `folder` in which nobody has written for a day."""
    now = time.time() if now is None else now
    for old in folder.parent.glob(f"shardline-{os.getuid()}-*"):
        with suppress(OSError):  # another rank removes it too
            if old != folder and all(now - path.lstat().st_mtime > OLD_S for path in [old, *old.iterdir()]):
                shutil.rmtree(old)


def lock_watchdog(folder: Path) -> int | None:
    """Return a descriptor that holds the lock of this host's watchdog; None while another process holds it.

    The kernel lets go of it when the last process with this descriptor ends, however it ends.
    """
    descriptor = os.open(folder / "watchdog.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def watchdog_locks(folders: Iterable[Path]) -> set[tuple[Path, int]]:
    """Return the lock files of the host's watchdog, each with its inode."""
    found = set()
    for folder in folders:
        with suppress(OSError):
            found.add((folder, (folder / "watchdog.lock").stat().st_ino))
    return found


def note_starts(descriptor: int, starts: int) -> None:
    """Note in the watchdog's lock file how often this launch has started it."""
    os.pwrite(descriptor, b"%16d" % starts, 0)


def starts_so_far(descriptor: int) -> int:
    text = os.pread(descriptor, 16, 0)
    return int(text) if text.strip().isdigit() else 0
