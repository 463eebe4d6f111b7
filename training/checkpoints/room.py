"""Whether a disk has room for checkpoints. Needs no torch."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from cluster.errors import CheckpointError
from cluster.wording import bytes_text
from training.optimizer_state import STATE_BYTES_PER_PARAMETER

SPARE_BYTES = 64 << 20  # what must stay free beside a checkpoint


def state_bytes(shapes: Iterable[Sequence[int]]) -> int:
    """Return the bytes of a checkpoint of trained parameters with these shapes."""
    return STATE_BYTES_PER_PARAMETER * sum(math.prod(shape) for shape in shapes)


def require_room(folder: Path, checkpoint_bytes: int, count: int = 1) -> str:
    """Return what so many checkpoints need in a folder, and what is free there, as text.

    Raises CheckpointError if less is free than they need.
    """
    needed = count * checkpoint_bytes + SPARE_BYTES
    there = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(there).free
    takes = f"{bytes_text(needed)}, of which {bytes_text(SPARE_BYTES)} must stay free"
    if free < needed:
        what = "a checkpoint needs" if count == 1 else f"{count} checkpoints at a time need"
        raise CheckpointError(f"{there}: {what} {takes}; the disk has {bytes_text(free)} free")
    return f"{takes}; the disk has {bytes_text(free)} free"
