"""What tells that a file is still the one that was hashed, at the price of asking for its size and time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """A file's size and time of change. Its inode is left out: some network disks number files anew on each host."""

    location: str
    name: str
    size: int
    modified_ns: int

    def check(self) -> None:
        """Raise DataError if the file is another one now, or gone."""
        now = stamp_of(Path(self.location), self.name)
        if now != self:
            sizes = f"{self.size} bytes when it was hashed, {now.size} now"
            how = sizes if now.size != self.size else "its time of change is another one, its size is the same"
            raise DataError(
                f"{self.name}: changed while it was read ({how}), so "
                "nothing of it was stored; wait until nobody writes to it, and run the command again"
            )


def stamp_of(location: Path, name: str) -> Stamp:
    """Return a file's stamp; `name` is what people call it. Raises DataError if it cannot be found."""
    try:
        found = location.stat()
    except OSError as error:
        raise DataError(
            f"{name}: cannot be read any more ({error.strerror}); restore it, or run the command again without it"
        ) from None
    return Stamp(location=str(location), name=name, size=found.st_size, modified_ns=found.st_mtime_ns)
