"""Running text by the column: the texts of many records in one run of bytes, where a file gives them without objection.

What a batch of records is made of is read once: at once if every record of the batch is a row with its text, else
record by record, as `data_prep.read.parts` reads everything. Both give the same texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from data_prep.files.bounded_io import END, ObjectionError, open_stream, read_lines
from data_prep.read.parts import Document, FilePart, Rejected, document_of, records_of
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


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Consecutive records of a part, counted from `record`: all of them texts, or documents and rejections."""

    record: int
    items: Texts | list[Document | Rejected]


def read_batches(part: FilePart) -> Iterator[TextBatch]:
    """Yield the records of a part of running text, in order; nothing is cleaned yet."""
    record = 0
    for found in column_or_raw(part):
        if isinstance(found, Texts):
            yield TextBatch(record, found)
        else:
            yield TextBatch(record, [document_of(record + n, raw, part.columns) for n, raw in enumerate(found)])
        record += len(found)


def column_or_raw(part: FilePart) -> Iterator[Texts | Sequence[Raw]]:
    """Yield the records of a part, those that are texts without objection as such."""
    columns = part.columns
    part.check_unchanged()
    path, form = Path(part.location), columns.format
    single = None if columns.layout is None else columns.layout.single
    if single is not None and form.kind == "jsonl":
        start, end = (part.start, part.end) if form.is_plain else (0, END)
        with open_stream(path, form.compression, form.encoding, cr_lines=form.cr_lines) as stream:
            yield from json_columns(stream, start, end, single)
    elif single is not None and form.kind == "parquet":
        for found in parquet_batches(path, part.start, part.end, columns.wanted):
            yield [found] if isinstance(found, ObjectionError) else table_column(found, single)
    else:
        for raw in records_of(path, columns, part.start, part.end):
            yield [raw]
    part.check_unchanged()


def json_columns(stream: BinaryIO, start: int, end: int, name: str) -> Iterator[Texts | Sequence[Raw]]:
    """Yield the lines whose first byte lies in `start` to `end`, as the texts in their column `name` where they can.

    Damage is an objection that follows the lines before it.
    """
    lines: list[bytes | ObjectionError] = []
    size = 0
    for line in whole_lines(stream, start, end):
        lines.append(line)
        size += 0 if isinstance(line, ObjectionError) else len(line)
        if size >= BLOCK_BYTES:
            yield json_column(lines, name) or lines
            lines, size = [], 0
    if lines:
        yield json_column(lines, name) or lines


def whole_lines(stream: BinaryIO, start: int, end: int) -> Iterator[bytes | ObjectionError]:
    """Yield lines, and as the last one why there are no more, if the file is damaged."""
    try:
        yield from read_lines(stream, start, end)
    except ObjectionError as objection:
        yield objection


def json_column(lines: Sequence[bytes | ObjectionError], name: str) -> Texts | None:
    """Return the texts in a column of JSON lines; None unless each line is one object that has it and no other medium.

    The parser is stricter than Python's own, so that what it reads is read alike record by record.
    """
    texts: list[bytes] = []
    try:
        for line in lines:
            row = {} if isinstance(line, ObjectionError) else orjson.loads(line)
            text = row.get(name) if isinstance(row, dict) else None
            if not isinstance(text, str) or any(row.get(extra) is not None for extra in MEDIA if extra != name):
                return None
            texts.append(text.encode())
    except orjson.JSONDecodeError:
        return None
    first = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=first[1:])
    return Texts(np.frombuffer(b"".join(texts), np.uint8), first)


def table_column(batch: pa.RecordBatch, name: str) -> Texts | Sequence[Raw]:
    """Return a batch of rows as the texts in their column `name`, or as rows if one of them may have an objection."""
    if batch.schema.names == [name] and pa.types.is_string(batch.schema.field(name).type):
        try:
            batch.validate(full=True)
        except pa.ArrowInvalid:
            return list(rows_of(batch))
        texts = texts_of(batch.column(name))
        if texts is not None:
            return texts
    return list(rows_of(batch))


def texts_of(column: Any) -> Texts | None:
    """Return a string array's texts without copying them, None if one is absent."""
    if column.null_count:
        return None
    _, offsets, data = column.buffers()
    first = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    return Texts(np.frombuffer(data or b"", dtype=np.uint8), first.astype(np.int64))
