"""How many tokens of each row of a split are trained: one mapped array, so that a step's count opens no shard.

Every rank counts the whole global batch of each step, which lies in as many shards as it has rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cluster.disk.atomic_files import whole_file
from cluster.errors import DamagedRowsError
from data_prep.shards.blocks import AGAIN, mapped_file, parse_trained_tokens
from data_prep.shards.manifest import Manifest, ShardInfo, check_size

NAME = "trained_tokens.npy"
Counts = npt.NDArray[np.int32]


class TrainedTokens(Protocol):
    """Trained tokens of the rows of a split."""

    def of(self, rows: npt.NDArray[np.int64]) -> Counts:
        """Return how many tokens of each of these rows are trained; no row is outside the split."""


def open_trained_tokens(folder: Path, manifest: Manifest, split: str) -> TrainedTokens:
    """Return a split's trained tokens: its file, mapped, or its shards' tables where the manifest lists no such file.

    Raises DataError if the file is not what the manifest says; `ShardReader` compares what it says of the rows.
    """
    relative = f"{split}/{NAME}"
    size = next((item.bytes for item in manifest.others if item.path == relative), None)
    if size is None:
        return TablesTrainedTokens(folder, manifest.splits[split])
    check_size(folder, relative, size)
    return FileTrainedTokens(folder / relative, manifest.rows(split))


class FileTrainedTokens:
    """Trained tokens in a mapped file."""

    def __init__(self, path: Path, rows: int) -> None:
        mapped, header = mapped_file(path), header_of(rows)
        if mapped[: len(header)].to_pybytes() != header or len(mapped) != len(header) + 4 * rows:
            raise DamagedRowsError(f"{path}: damaged: it is not an array of {rows} numbers of int32; {AGAIN}")
        self.counts = np.frombuffer(mapped, dtype="<i4", offset=len(header))

    def of(self, rows: npt.NDArray[np.int64]) -> Counts:
        return self.counts[rows]


class TablesTrainedTokens:
    """Trained tokens from the tables of the shards, each read when one of its rows is first asked for.

    Data folders of older versions have nothing else. `np.zeros` takes no memory before a shard's counts are filled in.
    """

    def __init__(self, folder: Path, shards: Sequence[ShardInfo]) -> None:
        self.folder, self.shards = folder, shards
        self.first_rows = first_rows_of(shards)
        self.counts = np.zeros(self.first_rows[-1], dtype=np.int32)
        self.is_read = np.zeros(len(shards), dtype=np.bool_)

    def of(self, rows: npt.NDArray[np.int64]) -> Counts:
        numbers = np.unique(np.searchsorted(self.first_rows, rows, side="right") - 1)
        for number in numbers[~self.is_read[numbers]].tolist():
            begin, end = self.first_rows[number : number + 2]
            self.counts[begin:end] = table_trained_tokens(self.folder, self.shards[number])
            self.is_read[number] = True  # last: another thread may ask meanwhile
        return self.counts[rows]


def first_rows_of(shards: Sequence[ShardInfo]) -> npt.NDArray[np.int64]:
    """Return the number in its split of each shard's first row, and at the end how many rows there are."""
    return np.cumsum([0, *(shard.rows for shard in shards)], dtype=np.int64)


def table_trained_tokens(folder: Path, shard: ShardInfo) -> Counts:
    """Return the trained tokens of a shard's rows from its table. Raises DataError if it is damaged."""
    check_size(folder, shard.path, shard.bytes)
    with (folder / shard.path).open("rb") as stream:
        stream.seek(shard.table_at)
        data = stream.read()
    if hashlib.sha256(data).hexdigest() != shard.table_sha256:
        raise DamagedRowsError(
            f"{folder / shard.path}: damaged in bytes {shard.table_at} to {shard.bytes}, its table of blocks; {AGAIN}"
        )
    return parse_trained_tokens(data)


def write_trained_tokens(folder: Path, split: str, shards: Sequence[ShardInfo]) -> None:
    """Write a split's trained tokens from its shards' tables, one shard in memory at a time."""
    rows = int(first_rows_of(shards)[-1])
    with whole_file(folder / split / NAME) as partial, partial.open("wb") as stream:
        stream.write(header_of(rows))
        for shard in shards:
            stream.write(table_trained_tokens(folder, shard).astype("<i4").tobytes())


def header_of(rows: int) -> bytes:
    """Return the header of a NPY file, version 1.0 (numpy.lib.format), of so many numbers of int32.

    numpy's own writer pads it by its version, and its reader raises whatever Python's parser does on a damaged one.
    """
    text = f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({rows},), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"
