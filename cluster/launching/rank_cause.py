"""Why a rank failed by itself, told by the rank to the process that started it: a file in a folder of this host.

The ranks have no common file for it: on a network file system, lines that several hosts append at once are damaged.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.environment import causes_folder
from cluster.errors import EXIT_FAILED

log = logging.getLogger(__name__)


@contextmanager
def folder_for_causes() -> Iterator[Path | None]:
    """Yield an empty folder of this host, removed afterwards; None where there is no room for one."""
    try:
        made = tempfile.TemporaryDirectory(prefix="shardline-causes-", ignore_cleanup_errors=True)
    except OSError as error:
        log.warning("why a rank fails will be in its log only: %s", error)
        yield None
        return
    with made as folder:
        yield Path(folder)


def tell_cause(rank: int, reason: str) -> None:
    """Leave the reason to our launcher; nothing under another one."""
    folder = causes_folder()
    if folder is None:
        return
    try:
        (folder / str(rank)).write_text(reason, encoding="utf-8")
    except OSError as error:
        log.warning("%s; not told to the launcher: %s", reason, error)


def cause_of(folder: Path, rank: int, code: int | None) -> str:
    """Return the reason that a rank has left; "" if it has left none, or a person must act on its end."""
    path = folder / str(rank)
    if code != EXIT_FAILED or not path.is_file():
        return ""
    return path.read_text(encoding="utf-8", errors="replace")
