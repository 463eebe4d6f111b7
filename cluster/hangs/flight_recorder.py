"""What the ranks wait in, by NCCL's flight recorder: a ring buffer in torch of each rank's last collectives.

torch writes a rank's buffer into a file when it is asked to by a named pipe, or when NCCL itself gives up. Our watchdog
finds a hang in seconds and asks; NCCL gives up after 40 minutes, or at once if a connection breaks. Without NCCL there
are neither pipes nor files.

The names of the variables are those of torch 2.11 to 2.13 (ProcessGroupNCCL.hpp, FlightRecorder.hpp).
"""

from __future__ import annotations

import errno
import io
import logging
import os
import pickle
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import write_json
from cluster.environment import variables
from cluster.heartbeats.heartbeat_files import parsed_object, read_small

log = logging.getLogger("cluster.hangs.watchdog")

ENTRIES = 2000  # of the ring buffer: some steps of a large model
TIMEOUT_S = 2400  # of NCCL's own threads, as of its collectives: our watchdog comes first, and knows loads and saves
DUMP_S = 6.0  # that a rank has to write its buffer: torch looks at the pipe once a second
OTHERS_S = 10.0  # that the other hosts have, which may need as long and see the hang later
MOST_BYTES = 64 << 20
PIPES = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"
DUMPS = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")  # the newer name wins
COMPLETED = "completed"
DAMAGE = (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError)


class PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts, lists and dictionaries, and calls nothing."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and a dump has plain values only")


@dataclass(frozen=True, kw_only=True)
class Wait:
    """The collective that a rank waits in, or with `is_over` the last one that it has finished."""

    rank: int
    operation: str
    group: str
    number: int
    is_over: bool

    @property
    def text(self) -> str:
        return f"{self.operation} number {self.number} of {self.group}"


def recorder_variables(dumps: Path, local: Path) -> dict[str, str]:
    """Return what turns the recorder on. `dumps` begins the names of the files, `local` is a folder of this host.

    The pipes must be on a disk that has such files: torch ends a rank whose pipe cannot be made.
    """
    return {
        "TORCH_FR_BUFFER_SIZE": str(ENTRIES),
        "TORCH_NCCL_TRACE_BUFFER_SIZE": str(ENTRIES),  # its older name
        **dict.fromkeys(DUMPS, stem_of_dumps() or str(dumps)),
        PIPES: str(local / "nccl-"),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_ENABLE_MONITORING": "1",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(TIMEOUT_S),
    }


def stem_of_dumps() -> str | None:
    """Return how the names of the dumps begin, if the environment says so."""
    given = variables(*DUMPS)
    return next((given[name] for name in DUMPS if given.get(name)), None)


def ask_for_dumps(ranks: Iterable[int]) -> list[int]:
    """Ask this host's ranks to write their buffers; return those that were asked: none without NCCL."""
    stem = variables(PIPES).get(PIPES)
    asked = []
    for rank in ranks if stem else ():
        try:
            descriptor = os.open(f"{stem}{rank}.pipe", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENXIO):  # no pipe, or nobody who reads it: no NCCL yet
                log.warning("rank %d was not asked what it waits in: %s", rank, error)
            continue
        with suppress(OSError):
            os.write(descriptor, b"1")
            asked.append(rank)
        os.close(descriptor)
    return asked


def waits_of(ranks: Iterable[int], asked: Sequence[int], since: float) -> list[Wait]:
    """Return what ranks of this host wait in, as their files say.

    Those that were asked have some seconds to write theirs; `since` is when, in seconds since 1970. Files that NCCL has
    written by itself before count too.
    """
    stem = stem_of_dumps()
    if not stem:
        return []
    deadline = time.monotonic() + DUMP_S
    while not all(is_written(Path(f"{stem}{rank}"), since) for rank in asked) and time.monotonic() < deadline:
        time.sleep(0.2)
    found = []
    for rank in ranks:
        path = Path(f"{stem}{rank}")
        try:
            wait = read_wait(path, rank) if path.exists() else None
        except (OSError, ValueError) as error:
            log.warning("%s: not a dump of NCCL's flight recorder: %s", path, error)
        else:
            found += [wait] if wait else []
    return found


def is_written(path: Path, since: float) -> bool:
    """Return whether a dump has been written since then, and whole."""
    try:
        if path.stat().st_mtime < since - 1:  # by the clock of the disk's host
            return False
        read_wait(path, rank=0)
    except (OSError, ValueError):
        return False
    return True


def read_wait(path: Path, rank: int) -> Wait | None:
    """Return what a dump says about its rank; None if it had no collective yet. Raises ValueError for what is none."""
    content = read_small(path, MOST_BYTES)
    if content is None:
        raise ValueError(f"cannot be read, or has more than {MOST_BYTES >> 20} MiB")
    try:
        return wait_in(PlainUnpickler(io.BytesIO(content)).load(), rank)
    except DAMAGE as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def wait_in(dump: Any, rank: int) -> Wait | None:
    """Return the oldest collective of a dump that is not completed; without one, the last that is."""
    entries = dump["entries"]
    if not entries:
        return None
    waiting = [entry for entry in entries if entry["state"] != COMPLETED]
    chosen = waiting[0] if waiting else entries[-1]
    number = chosen["p2p_seq_id"] if chosen.get("is_p2p") else chosen["collective_seq_id"]
    name, described = (*chosen["process_group"], "")[:2]
    return Wait(
        rank=rank,
        operation=str(chosen["profiling_name"]).rpartition(":")[2],  # nccl:all_reduce
        group="the default group" if described == "default_pg" else f"group {described or name}",
        number=int(number),
        is_over=not waiting,
    )


def of_all_hosts(folder: Path, attempt: str, host: str, hosts: Iterable[str], own: Sequence[Wait]) -> list[Wait]:
    """Write what this host's ranks wait in, and return that of all hosts as far as they write theirs in time."""
    paths = {name: folder / f"{attempt}-{name}.waits.json" for name in {host, *hosts}}
    write_json(paths[host], {"ranks": [asdict(wait) for wait in own]})
    deadline = time.monotonic() + OTHERS_S
    while not all(path.exists() for path in paths.values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    found = list(own)
    for name, path in paths.items():
        if name != host:
            found += parsed_waits(parsed_object(read_small(path, MOST_BYTES)).get("ranks"))
    return found


def parsed_waits(values: object) -> list[Wait]:
    """Return the waits that another host's file holds, without what is none."""
    found = []
    for value in values if isinstance(values, list) else []:
        with suppress(TypeError):
            found.append(Wait(**value))
    return found


def waits_text(waits: Iterable[Wait]) -> str:
    """Return what ranks wait in, those in the same collective together; nothing without any."""
    groups: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for wait in waits:
        groups[wait.is_over, wait.text].append(wait.rank)
    told = []
    for (is_over, what), ranks in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]))):
        one = len(ranks) == 1
        who = f"{'rank' if one else 'ranks'} {ranges(sorted(ranks))}"
        doing = f"{'is' if one else 'are'} in no collective, the last was" if is_over else f"wait{'s' * one} in"
        told.append(f"{who} {doing} {what}")
    return "; ".join(told)


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text: 0-6, 8."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
