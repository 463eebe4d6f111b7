"""Where ranks log, and why they failed, on a disk that may be away."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from cluster.errors import ShardlineError
from cluster.launching.local_launcher import RankNews
from cluster.paths import RunPaths
from cluster.restart_limit import attempt_name, note_cause

log = logging.getLogger(__name__)

STOPPING = "stopping after this step: saving a checkpoint"
AGAIN = "; Ctrl-C again ends now"


def news_of(paths: RunPaths, host: str = "") -> RankNews:
    """Return who is told what of the ranks of the newest attempt, on one of its hosts."""
    return RankNews(
        stopping=STOPPING if host else STOPPING + AGAIN,
        log_of=partial(log_of_newest, paths),
        note_cause=partial(note_if_possible, paths),
        host=host,
    )


def log_of_newest(paths: RunPaths, rank: int | str) -> Path:
    """Return where a rank of the newest attempt logs; with `*` for the attempt where the disk is away."""
    try:
        return paths.rank_log(attempt_name(paths), rank)
    except (OSError, ShardlineError):
        return paths.rank_log("*", rank)


def note_if_possible(paths: RunPaths, cause: str) -> bool:
    """Record a cause; return whether that was done. A disk that is away must not keep the ranks from a new start."""
    try:
        return note_cause(paths, cause)
    except (OSError, ShardlineError) as error:
        log.warning("%s; not recorded: %s", cause, error)
        return False
