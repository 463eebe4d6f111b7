"""A file that is another one than was hashed is refused, with what is other about it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.errors import DataError
from data_prep.files.file_stamps import stamp_of


def test_a_touched_file_is_told_by_its_time_and_a_longer_one_by_its_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("goose")
    stamp = stamp_of(path, "a.txt")
    os.utime(path, (1, 1))
    with pytest.raises(DataError, match="its modification time changed, its size did not"):
        stamp.check()
    path.write_text("geese sing")
    with pytest.raises(DataError, match="5 bytes when it was hashed, 10 now"):
        stamp.check()
