"""A number for each row of a split: one mapped array, so that a step's rows are counted and compared unread.

Every rank asks for those of the whole global batch of each step, whose rows lie in as many shards as there are rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cluster.disk.atomic_files import whole_file
from cluster.errors import DamagedRowsError
from data_prep.shards.blocks import AGAIN, mapped_file
from data_prep.shards.manifest import Manifest, ShardInfo, check_size

Numbers = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class RowNumber:
    """What is told of each row: the name of the file, the numbers' type, and how a shard alone tells them."""

    name: str
    dtype: np.dtype[Any]
    of_shard: Callable[[Path, ShardInfo], Numbers]
    """Takes the folder of the data."""


class RowNumbers(Protocol):
    """The numbers of a split's rows."""

    def of(self, rows: npt.NDArray[np.int64]) -> Numbers:
        """Return the number of each of these rows; no row is outside the split."""


def open_row_numbers(kind: RowNumber, folder: Path, manifest: Manifest, split: str) -> RowNumbers:
    """Return a split's numbers: their file, mapped, or its shards where the manifest lists no such file.

    Raises DataError if the file is not what the manifest says; `ShardReader` compares what it says of the rows.
    """
    relative = f"{split}/{kind.name}"
    size = next((item.bytes for item in manifest.others if item.path == relative), None)
    if size is None:
        return NumbersOfShards(kind, folder, manifest.splits[split])
    check_size(folder, relative, size)
    return NumbersInFile(mapped_numbers(folder / relative, manifest.rows(split), kind.dtype))


@dataclass(frozen=True)
class NumbersInFile:
    """Numbers in a mapped file."""

    numbers: Numbers

    def of(self, rows: npt.NDArray[np.int64]) -> Numbers:
        return self.numbers[rows]


class NumbersOfShards:
    """Numbers from the shards themselves, each read when one of its rows is first asked for.

    Data folders of older versions have nothing else. `np.zeros` takes no memory before a shard's numbers are filled in.
    """

    def __init__(self, kind: RowNumber, folder: Path, shards: Sequence[ShardInfo]) -> None:
        self.kind, self.folder, self.shards = kind, folder, shards
        self.first_rows = first_rows_of(shards)
        self.numbers = np.zeros(self.first_rows[-1], dtype=kind.dtype)
        self.is_read = np.zeros(len(shards), dtype=np.bool_)

    def of(self, rows: npt.NDArray[np.int64]) -> Numbers:
        asked = np.unique(np.searchsorted(self.first_rows, rows, side="right") - 1)
        for number in asked[~self.is_read[asked]].tolist():
            begin, end = self.first_rows[number : number + 2]
            self.numbers[begin:end] = self.kind.of_shard(self.folder, self.shards[number])
            self.is_read[number] = True  # last: another thread may ask meanwhile
        return self.numbers[rows]


def first_rows_of(shards: Sequence[ShardInfo]) -> npt.NDArray[np.int64]:
    """Return the number in its split of each shard's first row, and at the end how many rows there are."""
    return np.cumsum([0, *(shard.rows for shard in shards)], dtype=np.int64)


def write_row_numbers(kind: RowNumber, folder: Path, split: str, shards: Sequence[ShardInfo]) -> None:
    """Write a split's numbers from its shards, one shard in memory at a time."""
    rows = int(first_rows_of(shards)[-1])
    with whole_file(folder / split / kind.name) as partial, partial.open("wb") as stream:
        stream.write(header_of(rows, kind.dtype))
        for shard in shards:
            stream.write(kind.of_shard(folder, shard).astype(kind.dtype).tobytes())


def mapped_numbers(path: Path, rows: int, dtype: np.dtype[Any]) -> Numbers:
    """Return the numbers of a NPY file with `header_of`, mapped. Raises DamagedRowsError if it is not such a file."""
    mapped, header = mapped_file(path), header_of(rows, dtype)
    if mapped[: len(header)].to_pybytes() != header or len(mapped) != len(header) + dtype.itemsize * rows:
        raise DamagedRowsError(f"{path}: damaged: it is not an array of {rows} numbers of {dtype.name}; {AGAIN}")
    return np.frombuffer(mapped, dtype=dtype, offset=len(header))


def header_of(rows: int, dtype: np.dtype[Any]) -> bytes:
    """Return the header of a NPY file, version 1.0 (numpy.lib.format), of so many numbers.

    numpy's own writer pads it by its version, and its reader raises whatever Python's parser does on a damaged one.
    """
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({rows},), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"
