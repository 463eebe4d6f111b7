"""Running text by the column: the texts of many records as one Arrow array, where a file gives them without objection.

What a batch of records is made of is read once: by Arrow if every record of the batch is a row with its text, else
record by record, as `data_prep.documents` reads everything. Both give the same texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_prep.documents import Document, Part, Raw, Rejected, document_of, raw_records
from data_prep.shapes import EXTRA_COLUMNS
from data_prep.streams import END, ObjectionError, open_stream, read_lines
from data_prep.tables import parquet_batches, rows_of

BLOCK_BYTES = 4 * 2**20  # of JSON lines that are parsed at once


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts in UTF-8, one after the other: text i is data[first[i]:first[i + 1]]."""

    data: npt.NDArray[np.uint8]
    first: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first) - 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records of a part, counted from `record`: all of them texts, or documents and rejections."""

    record: int
    items: Texts | list[Document | Rejected]


def read_batches(part: Part) -> Iterator[Batch]:
    """Yield the records of a part of running text, in order; nothing is cleaned yet."""
    record = 0
    for found in column_or_raw(part):
        if isinstance(found, Texts):
            yield Batch(record, found)
        else:
            yield Batch(record, [document_of(record + n, raw, part.columns) for n, raw in enumerate(found)])
        record += len(found)


def column_or_raw(part: Part) -> Iterator[Texts | Sequence[Raw]]:
    """Yield the records of a part, those that are texts without objection as such."""
    columns = part.columns
    path, form = Path(part.location), columns.format
    wanted = (*columns.names, *EXTRA_COLUMNS)
    try:
        if len(columns.names) == 1 and form.kind == "jsonl":
            with open_stream(path, form.compression) as stream:
                whole = form.compression is not None
                yield from json_columns(stream, 0 if whole else part.start, END if whole else part.end, *columns.names)
        elif len(columns.names) == 1 and form.kind == "parquet":
            for found in parquet_batches(path, part.start, part.end, wanted):
                yield [found] if isinstance(found, ObjectionError) else table_column(found, *columns.names)
        else:
            for raw in raw_records(path, form, part.start, part.end, wanted):
                yield [raw]
    except ObjectionError as objection:
        yield [objection]


def json_columns(stream: BinaryIO, start: int, end: int, name: str) -> Iterator[Texts | Sequence[Raw]]:
    """Yield the lines whose first byte lies in `start` to `end`, as the texts in their column `name` where they can."""
    lines: list[bytes | ObjectionError] = []
    size = 0
    for line in read_lines(stream, start, end):
        lines.append(line)
        size += 0 if isinstance(line, ObjectionError) else len(line)
        if size >= BLOCK_BYTES:
            yield json_column(lines, name) or lines
            lines, size = [], 0
    if lines:
        yield json_column(lines, name) or lines


def json_column(lines: Sequence[bytes | ObjectionError], name: str) -> Texts | None:
    """Return the texts in a column of JSON lines; None unless each line is one object that has it and no other medium.

    Arrow counts objects, not lines: only if each line begins and ends as an object does are they the same.
    """
    from pyarrow import json  # so that nothing else loads it

    whole = [line for line in lines if not isinstance(line, ObjectionError) and line[:1] == b"{" and line[-1:] == b"}"]
    if len(whole) < len(lines):
        return None
    block = b"\n".join(whole)
    schema = pa.schema([(name, pa.string()), *((extra, pa.null()) for extra in EXTRA_COLUMNS if extra != name)])
    try:
        valid_utf8(block)
        table = json.read_json(
            pa.BufferReader(block),
            read_options=json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    column = table[name].combine_chunks()
    return texts_of(column) if len(column) == len(lines) else None


def valid_utf8(block: bytes) -> None:
    """Raise ArrowInvalid if bytes are no UTF-8."""
    ends = np.array([0, len(block)], dtype=np.int32)
    pa.StringArray.from_buffers(1, pa.py_buffer(ends), pa.py_buffer(block)).validate(full=True)


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
