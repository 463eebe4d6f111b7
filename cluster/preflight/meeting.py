"""A folder in the run's folder where each host leaves a file: it shows whether they all see the same disk."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MEETING = ".doctor-"  # of a doctor that was killed, such a folder may remain: it can be removed


@contextmanager
def meeting_in(folder: Path) -> Iterator[Path | None]:
    """Give a new folder in the run's folder, and remove what was made for it; None if none can be made there.

    Why it cannot be made is then each host's to find, as each tries to write.
    """
    made = [one for one in (folder, *folder.absolute().parents) if not one.exists()]
    meeting = folder.absolute() / f"{MEETING}{uuid.uuid4().hex[:12]}"
    try:
        meeting.mkdir(parents=True)
    except OSError:
        yield None
        return
    try:
        yield meeting
    finally:
        shutil.rmtree(meeting, ignore_errors=True)
        for one in made:
            with suppress(OSError):  # a run has begun in it meanwhile
                one.rmdir()


def unseen_in(meeting: Path | None, hosts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the hosts that have left a file in the folder which is not seen here."""
    if meeting is None:
        return []
    there = set(os.listdir(meeting))  # noqa: PTH208  # opens the folder, so that NFS asks its server again
    left = {host: facts.get("folder", {}).get("left") for host, facts in hosts.items()}
    return [host for host, name in left.items() if name is not None and name not in there]
