"""The records of a part in blocks: running text as a whole column where the file's format allows it, else one by one.

A column needs no Python object for each of its texts, so it is used wherever every record of a block is a row with a
valid text. Both ways give the same texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from data_prep.files.bounded_io import RecordError
from data_prep.read.parts import FilePart, records_of
from data_prep.read.records import Raw
from data_prep.read.tables import parquet_batches, rows_of
from data_prep.rows.row_layouts import MEDIA

BLOCK_BYTES = 4 * 2**20  # of JSON lines that are parsed at once


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts in UTF-8, one after the other: text i is data[first[i]:first[i + 1]]."""

    data: npt.NDArray[np.uint8]
    first: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first) - 1

    def __iter__(self) -> Iterator[bytes]:
        data = self.data.data
        return (bytes(data[begin:end]) for begin, end in itertools.pairwise(self.first.tolist()))


def read_blocks(part: FilePart) -> Iterator[Texts | Iterable[Raw]]:
    """Yield the records of a part in order, as texts of one column or as they are in the file.

    Each block must be consumed before the next one is requested. Raises DataError if the file has changed since it was
    hashed; damage is the last record of the file.
    """
    columns = part.columns
    column = None if columns.layout is None else columns.layout.single
    part.check_unchanged()
    records = records_of(Path(part.location), columns, part.start, part.end)
    if column is not None and columns.format.kind == "jsonl":
        for lines in blocks_of_lines(records):
            yield json_texts(lines, column) or lines
    elif column is not None and columns.format.kind == "parquet":
        for batch in parquet_batches(Path(part.location), part.start, part.end, columns.wanted):
            yield [batch] if isinstance(batch, RecordError) else table_texts(batch, column) or rows_of(batch)
    else:
        yield records
    part.check_unchanged()


def blocks_of_lines(lines: Iterable[Raw]) -> Iterator[list[Raw]]:
    """Yield JSON lines in blocks of about BLOCK_BYTES."""
    block: list[Raw] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line) if isinstance(line, bytes) else 0
        if size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def json_texts(lines: Sequence[Raw], column: str) -> Texts | None:
    """Return the texts in a column of JSON lines; None unless each line is one object that has it and no other medium.

    orjson is stricter than Python's own parser, so what it accepts is read the same record by record.
    """
    texts: list[bytes] = []
    try:
        for line in lines:
            row = orjson.loads(line) if isinstance(line, bytes) else {}
            text = row.get(column) if isinstance(row, dict) else None
            if not isinstance(text, str) or any(row.get(extra) is not None for extra in MEDIA if extra != column):
                return None
            texts.append(text.encode())
    except orjson.JSONDecodeError:
        return None
    first = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=first[1:])
    return Texts(np.frombuffer(b"".join(texts), np.uint8), first)


def table_texts(batch: pa.RecordBatch, column: str) -> Texts | None:
    """Return a batch's texts, not copied; None if it has other columns, an absent text or invalid UTF-8."""
    if batch.schema.names != [column] or not pa.types.is_string(batch.schema.field(column).type):
        return None
    try:
        batch.validate(full=True)  # of the bytes too: Parquet promises UTF-8 and writers break it
    except pa.ArrowInvalid:
        return None
    texts: Any = batch.column(column)
    if texts.null_count:
        return None
    _, offsets, data = texts.buffers()
    first = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return Texts(np.frombuffer(data or b"", dtype=np.uint8), first.astype(np.int64))
