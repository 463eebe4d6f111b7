"""Why a rank failed by itself, told by the rank to the process that started it: a line in a file that has no name.

It is in that process's memory, so nothing is left of it whatever ends that process. The ranks of several hosts have no
common file for it: on a network file system, lines that several hosts append at once are damaged.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cluster.environment import causes_file
from cluster.errors import EXIT_FAILED

log = logging.getLogger(__name__)


@contextmanager
def file_for_causes() -> Iterator[int | None]:
    """Yield the descriptor of an empty file; None where the kernel gives none."""
    try:
        descriptor = os.memfd_create("shardline-causes", os.MFD_CLOEXEC)
    except OSError as error:
        log.warning("why a rank fails will be in its log only: %s", error)
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def path_of(descriptor: int) -> str:
    """Return the path by which this process's children reach one of its open files."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def tell_cause(rank: int, reason: str) -> None:
    """Leave the reason to our launcher; nothing under another one."""
    path = causes_file()
    if path is None:
        return
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([rank, reason]) + "\n")
    except OSError as error:
        log.warning("%s; not told to the launcher: %s", reason, error)


def causes_of(descriptor: int, codes: Mapping[int, int | None]) -> list[str]:
    """Return the reasons that ranks have left, the earliest first; not of those on whose end a person must act."""
    lines, _, _ = os.pread(descriptor, os.fstat(descriptor).st_size, 0).rpartition(b"\n")  # a rank may die as it writes
    told = [json.loads(line) for line in lines.splitlines()]
    return [reason for rank, reason in told if codes.get(rank) == EXIT_FAILED]
