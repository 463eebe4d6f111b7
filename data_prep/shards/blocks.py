"""A shard file: an Arrow stream, and after its end a table of its blocks, so that each can be checked when it is read.

    schema message, record batch messages, end of stream     what any Arrow reader sees
    JSON: {"ends": [...], "rows": [...], "sha256": [...], "trained": [...]}

Block 0 is the schema, block i + 1 the record batch of rows[i] rows; block i ends at byte ends[i]. `trained` has the
trained tokens of each row. The manifest has the offset and the sha256 of the table, so a block that was exchanged for
another one, with its digest, is noticed too.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import DamagedRowsError

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # Arrow columnar format, IPC streaming format
AGAIN = "delete it and run `shardline prepare RUN.yaml` again"


@dataclass(frozen=True, kw_only=True)
class BlockTable:
    """Where the blocks of a shard end, what they hash to, and the trained tokens of each row."""

    ends: list[int]
    rows: list[int]
    sha256: list[str]
    trained: list[int]

    def as_bytes(self) -> bytes:
        return json.dumps(vars(self), separators=(",", ":")).encode()


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
    table = BlockTable(ends=[], rows=[], sha256=[], trained=[])
    with path.open("wb") as stream:

        def write(data: pa.Buffer | bytes) -> None:
            stream.write(data)
            whole.update(data)

        def write_block(block: pa.Buffer) -> None:
            write(block)
            table.ends.append(stream.tell())
            table.sha256.append(hashlib.sha256(block).hexdigest())

        write_block(schema.serialize())
        for batch in batches:
            write_block(batch.serialize())
            table.rows.append(batch.num_rows)
            table.trained.extend(batch.column("trained_tokens").to_pylist())
        write(END_OF_STREAM)
        table_at = stream.tell()
        write(table.as_bytes())
        size = stream.tell()
    return Written(
        rows=sum(table.rows),
        trained_tokens=sum(table.trained),
        bytes=size,
        sha256=whole.hexdigest(),
        table_at=table_at,
        table_sha256=hashlib.sha256(table.as_bytes()).hexdigest(),
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


class ShardFile:
    """One shard, mapped: its record batches are checked, if asked, when they are first touched."""

    def __init__(self, path: Path, table_at: int, table_sha256: str, *, verify: bool) -> None:
        self.path, self.verify = path, verify
        with path.open("rb") as stream:
            self.mapped = pa.py_buffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        self.table = read_table(path, self.mapped, table_at, table_sha256)
        self.first_rows = [0, *itertools.accumulate(self.table.rows)]
        self.schema = pa.ipc.read_schema(self.checked(0))
        self.row_tokens: int = self.schema.field("input_ids").type.list_size
        self.blocks: dict[int, Block] = {}

    def locate(self, row: int) -> tuple[Block, int]:
        """Return the block that holds a row, and the row's index in it."""
        number = bisect.bisect_right(self.first_rows, row) - 1
        if number not in self.blocks:
            batch = pa.ipc.read_record_batch(self.checked(number + 1), self.schema)
            self.blocks[number] = block_of(batch, self.row_tokens)
        return self.blocks[number], row - self.first_rows[number]

    def checked(self, block: int) -> pa.Buffer:
        """Return a block's bytes. Raises DamagedRowsError if they are not what was written."""
        begin, end = block_range(self.table, block)
        data = self.mapped[begin:end]
        if self.verify and hashlib.sha256(data).hexdigest() != self.table.sha256[block]:
            raise DamagedRowsError(f"{self.path}: damaged in bytes {begin} to {end}; {AGAIN}")
        return data


def read_table(path: Path, mapped: pa.Buffer, table_at: int, table_sha256: str) -> BlockTable:
    """Return a shard's block table. Raises DamagedRowsError if it is not what the manifest describes."""
    data = mapped[table_at:]
    if hashlib.sha256(data).hexdigest() != table_sha256:
        raise DamagedRowsError(f"{path}: damaged in bytes {table_at} to {len(mapped)}, its table of blocks; {AGAIN}")
    return BlockTable(**json.loads(data.to_pybytes()))


def block_range(table: BlockTable, block: int) -> tuple[int, int]:
    return table.ends[block - 1] if block else 0, table.ends[block]


def damaged_ranges(path: Path, table_at: int, table_sha256: str) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges of a shard that are not as written, as narrow as its blocks tell."""
    data = path.read_bytes()
    if hashlib.sha256(data[table_at:]).hexdigest() != table_sha256:
        yield table_at, len(data)
        return
    table = BlockTable(**json.loads(data[table_at:]))
    for block in range(len(table.ends)):
        begin, end = block_range(table, block)
        if hashlib.sha256(data[begin:end]).hexdigest() != table.sha256[block]:
            yield begin, end
    if data[table.ends[-1] : table_at] != END_OF_STREAM:
        yield table.ends[-1], table_at
