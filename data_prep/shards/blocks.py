"""A shard file: an Arrow stream, and after its end a table of its blocks, so that each can be checked when it is read.

    schema message, record batch messages, end of stream     what any Arrow reader sees
    JSON: {"ends": [...], "rows": [...], "sha256": [...], "trained": [...]}

Block 0 is the schema, block i + 1 the record batch of rows[i] rows; block i ends at byte ends[i]. `trained` has the
trained tokens of each row. The manifest has the offset and the sha256 of the table, so a block that was exchanged for
another one, with its digest, is noticed too.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import DamagedRowsError

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # Arrow columnar format, IPC streaming format
AGAIN = "delete it and run `shardline prepare RUN.yaml` again"


@dataclass(frozen=True, slots=True)
class BlockTable:
    """Where the blocks of a shard end, which row each record batch begins with, and what each block hashes to.

    `ends` and `first_rows` have as many items as there are blocks: the last first row is the number of rows, and
    `sha256` has 32 bytes for each block. Not numpy's arrays: `bisect` in one of these takes a tenth of `searchsorted`.
    """

    ends: array[int]
    first_rows: array[int]
    sha256: bytes

    def block_of(self, row: int) -> int:
        """Return the block whose record batch holds a row of the shard."""
        return bisect_right(self.first_rows, row)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written of one shard."""

    rows: int
    trained_tokens: int
    bytes: int
    sha256: str
    table_at: int
    table_sha256: str


def write_blocks(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Written:
    """Write record batches, which have a column `trained_tokens`, and the table of their blocks."""
    whole = hashlib.sha256()
    ends: list[int] = []
    rows: list[int] = []
    digests: list[str] = []
    trained: list[int] = []
    with path.open("wb") as stream:

        def write(data: pa.Buffer | bytes) -> None:
            stream.write(data)
            whole.update(data)

        def write_block(block: pa.Buffer) -> None:
            write(block)
            ends.append(stream.tell())
            digests.append(hashlib.sha256(block).hexdigest())

        write_block(schema.serialize())
        for batch in batches:
            write_block(batch.serialize())
            rows.append(batch.num_rows)
            trained.extend(batch.column("trained_tokens").to_pylist())
        write(END_OF_STREAM)
        table_at = stream.tell()
        values = {"ends": ends, "rows": rows, "sha256": digests, "trained": trained}
        table = json.dumps(values, separators=(",", ":")).encode()
        write(table)
    return Written(
        rows=sum(rows),
        trained_tokens=sum(trained),
        bytes=table_at + len(table),
        sha256=whole.hexdigest(),
        table_at=table_at,
        table_sha256=hashlib.sha256(table).hexdigest(),
    )


def arrow_array(values: npt.NDArray[Any]) -> pa.Array:
    """Return a numeric array as Arrow's without a copy, and without pandas, which `pa.array` takes 0.3 s to import."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def numpy_array(values: pa.Array) -> npt.NDArray[Any]:
    """Return a numeric Arrow array without nulls as numpy's, without a copy and without pandas."""
    data = values.buffers()[1]
    kind = np.dtype(values.type.to_pandas_dtype())
    return np.frombuffer(data or b"", dtype=kind)[values.offset : values.offset + len(values)]


@dataclass(frozen=True, slots=True)
class Block:
    """One record batch, and views of its columns: ids [rows, T], mask [rows, T / 8] bits, and the pieces' lengths."""

    batch: pa.RecordBatch
    ids: npt.NDArray[Any]
    mask: npt.NDArray[np.uint8]
    piece_first: npt.NDArray[np.int32]
    piece_tokens: npt.NDArray[np.int32]


def block_of(batch: pa.RecordBatch, row_tokens: int) -> Block:
    """Return the views of a record batch that begins at its buffers' beginning, as one read from a message does."""
    ids, mask, pieces = (batch.column(name) for name in ("input_ids", "loss_mask", "piece_tokens"))
    kind = np.uint16 if ids.values.type == pa.uint16() else np.uint32
    rows = batch.num_rows
    bits = np.frombuffer(mask.values.buffers()[1], dtype=np.uint8)[: rows * row_tokens // 8]
    return Block(
        batch=batch,
        ids=np.frombuffer(ids.values.buffers()[1], dtype=kind)[: rows * row_tokens].reshape(rows, row_tokens),
        mask=bits.reshape(rows, row_tokens // 8),
        piece_first=numpy_array(pieces.offsets),
        piece_tokens=numpy_array(pieces.values),
    )


class CheckedBlocks:
    """Which blocks of a shard were found to be as written, a bit each: it is kept when the shard itself is closed.

    Two threads that add at once may lose a bit; that block is then hashed once more.
    """

    __slots__ = ("bits",)

    def __init__(self) -> None:
        self.bits = 0

    def __contains__(self, block: int) -> bool:
        return bool(self.bits >> block & 1)

    def add(self, block: int) -> None:
        self.bits |= 1 << block


class ShardFile:
    """One shard, mapped: its blocks are checked, unless `checked` has them or is None, when they are read."""

    def __init__(self, path: Path, table_at: int, table_sha256: str, checked: CheckedBlocks | None) -> None:
        self.path, self.checked = path, checked
        self.mapped = mapped_file(path)
        self.table = parse_table(table_bytes(path, self.mapped, table_at, table_sha256))
        self.schema = parse_schema(self.data_of(0).to_pybytes())

    def read(self, number: int) -> Block:
        """Return the record batch of a block, from 1. Raises DamagedRowsError if it is not what was written."""
        batch = pa.ipc.read_record_batch(self.data_of(number), self.schema)
        return block_of(batch, self.schema.field("input_ids").type.list_size)

    def data_of(self, number: int) -> pa.Buffer:
        """Return a block's bytes. Raises DamagedRowsError if they are not what was written."""
        begin, end = block_range(self.table, number)
        data = self.mapped[begin:end]
        if self.checked is not None and number not in self.checked:
            if not is_as_written(data, self.table, number):
                raise DamagedRowsError(f"{self.path}: damaged in bytes {begin} to {end}; {AGAIN}")
            self.checked.add(number)
        return data


def mapped_file(path: Path) -> pa.Buffer:
    """Map a file as a whole, without a descriptor that stays open, until the last view of it is gone.

    Python's `mmap` keeps a copy of the descriptor for as long as the mapping lives (until 3.13), and reading a file
    through `pyarrow.memory_map` asks the system to load all that is read. So one byte is read, which holds the mapping,
    and the rest is addressed from there.
    """
    with pa.memory_map(str(path)) as file:
        first = file.read_buffer(1)
        return pa.foreign_buffer(first.address, file.size(), base=first)


def table_bytes(path: Path, mapped: pa.Buffer, table_at: int, table_sha256: str) -> bytes:
    """Return a shard's block table as it lies in the file. Raises DamagedRowsError if it is not the manifest's."""
    data: bytes = mapped[table_at:].to_pybytes()
    if hashlib.sha256(data).hexdigest() != table_sha256:
        raise DamagedRowsError(f"{path}: damaged in bytes {table_at} to {len(mapped)}, its table of blocks; {AGAIN}")
    return data


def parse_table(data: bytes) -> BlockTable:
    """Return a block table. The trained tokens, nine tenths of it, come last: they are not parsed here."""
    values = json.loads(data[: data.index(b',"trained":')] + b"}")
    return BlockTable(
        ends=array("q", values["ends"]),
        first_rows=array("q", accumulate(values["rows"], initial=0)),
        sha256=bytes.fromhex("".join(values["sha256"])),
    )


def parse_trained_tokens(data: bytes) -> npt.NDArray[np.int32]:
    """Return the trained tokens of each row of a shard, from its block table."""
    return np.array(json.loads(data)["trained"], dtype=np.int32)


@lru_cache(maxsize=8)
def parse_schema(block: bytes) -> pa.Schema:
    """Return the schema in a shard's block 0; those of a split are all the same."""
    return pa.ipc.read_schema(pa.py_buffer(block))


def block_range(table: BlockTable, block: int) -> tuple[int, int]:
    """Return where a block begins and ends in its file."""
    return table.ends[block - 1] if block else 0, table.ends[block]


def is_as_written(data: pa.Buffer | bytes, table: BlockTable, block: int) -> bool:
    """Return whether a block's bytes hash to what the table says."""
    return hashlib.sha256(data).digest() == table.sha256[32 * block : 32 * (block + 1)]


def damaged_ranges(path: Path, table_at: int, table_sha256: str) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges of a shard that are not as written, as narrow as its blocks tell."""
    data = path.read_bytes()
    if hashlib.sha256(data[table_at:]).hexdigest() != table_sha256:
        yield table_at, len(data)
        return
    table = parse_table(data[table_at:])
    for block in range(len(table.ends)):
        begin, end = block_range(table, block)
        if not is_as_written(data[begin:end], table, block):
            yield begin, end
    end_of_blocks = table.ends[-1]
    if data[end_of_blocks:table_at] != END_OF_STREAM:
        yield end_of_blocks, table_at
