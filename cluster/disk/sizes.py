"""How much a folder holds while others write and remove in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def size_below(folder: Path) -> int:
    """Return the bytes of all files below a folder; 0 without one, and nothing for what vanishes meanwhile."""
    return sum(size for _, size in files_below(folder))


def files_below(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield the files below a folder with their bytes; what vanishes meanwhile is passed over."""
    for place, _, names in os.walk(folder):  # says nothing of a folder that is gone, as Path.rglob does by an error
        for name in names:
            path = Path(place, name)
            try:
                yield path, path.stat().st_size
            except FileNotFoundError:
                continue
