"""Check cheaply that a file is still the one that was hashed: by its size and modification time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """A file's size and modification time. No inode: network file systems may number files differently on each host."""

    location: str
    name: str
    size: int
    modified_ns: int

    def check(self) -> None:
        """Raise DataError if the file has changed or is gone."""
        now = stamp_of(Path(self.location), self.name)
        if now != self:
            sizes = f"{self.size} bytes when it was hashed, {now.size} now"
            how = sizes if now.size != self.size else "its modification time changed, its size did not"
            raise DataError(
                f"{self.name}: changed while it was read ({how}), so "
                "nothing of it was stored; wait until nothing writes to it, then run the command again"
            )


def stamp_of(location: Path, name: str) -> Stamp:
    """Return a file's stamp; `name` is shown in messages. Raises DataError if it cannot be found."""
    try:
        found = location.stat()
    except OSError as error:
        raise DataError(
            f"{name}: can no longer be read ({error.strerror}); restore it, or run the command again without it"
        ) from None
    return Stamp(location=str(location), name=name, size=found.st_size, modified_ns=found.st_mtime_ns)
