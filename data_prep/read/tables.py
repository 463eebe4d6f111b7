"""Rows out of JSON, Parquet and Arrow files, one at a time."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.files.bounded_io import (
    CHUNK_BYTES,
    DOCUMENT_BYTES,
    TOO_LONG,
    RecordError,
    raise_if_disk,
    require_whole,
)

Record = Mapping[str, Any]

BATCH_ROWS = 256  # rows of a table that are Python objects at once
STRING_REST = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
STRUCTURE = re.compile(rb'["\[\]{},]')
BLANK = b" \t\r\n,\xef\xbb\xbf"


class JsonSplitter:
    """Cuts a stream of JSON into the raw elements of its array, or into its objects if they follow each other.

    It keeps brackets and strings apart and parses nothing, so depth costs no stack and a broken element only itself.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.in_array = False
        self.in_string = False
        self.element = bytearray()
        self.bytes = 0

    def feed(self, chunk: bytes) -> Iterator[bytes | RecordError]:
        """Yield the elements that end in a chunk; a chunk must not end with a backslash."""
        begin = at = 0
        while at < len(chunk):
            if self.in_string:
                at = STRING_REST.match(chunk, at).end()  # type: ignore[union-attr]  # it matches the empty string
                self.in_string = at >= len(chunk)
                at += 1
                continue
            found = STRUCTURE.search(chunk, at)
            if found is None:
                break
            at = found.end()
            mark = found.group()
            if mark == b"[" and self.depth == 0 and not (self.element + chunk[begin : at - 1]).strip(BLANK):
                self.in_array, self.depth, begin = True, 1, at
            elif self.step(mark):
                self.keep(chunk[begin : at - 1 if self.in_array else at])
                begin = at
                yield from self.take()
        self.keep(chunk[begin:])

    def step(self, mark: bytes) -> bool:
        """Follow one structural byte; tell whether an element ends with it."""
        if mark == b'"':
            self.in_string = True
        elif mark in b"[{":
            self.depth += 1
        elif mark in b"]}":
            self.depth = max(self.depth - 1, 0)
        if self.in_array:
            return (mark == b"," and self.depth == 1) or self.depth == 0
        return mark in b"]}" and self.depth == 0

    def keep(self, data: bytes) -> None:
        """Add data to the element that is read, up to what a document may have."""
        self.bytes += len(data)
        if self.bytes <= DOCUMENT_BYTES:
            self.element += data

    def take(self) -> Iterator[bytes | RecordError]:
        """Yield the element read so far, if it is more than blank."""
        raw, too_long = bytes(self.element), self.bytes > DOCUMENT_BYTES
        self.element.clear()
        self.bytes = 0
        if self.depth == 0:
            self.in_array = False
        if too_long:
            yield RecordError(TOO_LONG)
        elif raw := raw.strip(BLANK):
            yield raw


def split_json(stream: BinaryIO) -> Iterator[bytes | RecordError]:
    """Yield the raw elements of a JSON array, or the raw objects of a file that holds one after the other."""
    splitter = JsonSplitter()
    while chunk := stream.read(CHUNK_BYTES):
        while chunk.endswith(b"\\") and (more := stream.read(1)):
            chunk += more
        yield from splitter.feed(chunk)
    require_whole(stream)
    yield from splitter.take()  # what is left if the file ends early


def read_parquet(path: Path, start: int, end: int, wanted: Sequence[str] | None) -> Iterator[Record | RecordError]:
    """Yield the rows of the row groups whose first byte lies in `start` to `end`; only the `wanted` columns."""
    for batch in parquet_batches(path, start, end, wanted):
        if isinstance(batch, RecordError):
            yield batch
        else:
            yield from rows_of(batch)


def parquet_batches(
    path: Path, start: int, end: int, wanted: Sequence[str] | None
) -> Iterator[pa.RecordBatch | RecordError]:
    """Yield BATCH_ROWS rows at a time of the row groups whose first byte lies in `start` to `end`."""
    try:
        with mapped(path) as source, pq.ParquetFile(source) as file:
            columns = chosen(file.schema_arrow.names, wanted)
            groups = [n for n in range(file.num_row_groups) if start <= group_start(file, n) < end]
            for group in groups:
                yield from file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise_if_disk(error)
        yield RecordError(f"damaged Parquet ({type(error).__name__})")


def mapped(path: Path) -> Any:
    """Map a file that is not empty; pyarrow's own way takes no name that is not UTF-8."""
    with path.open("rb") as stream:
        return pa.BufferReader(pa.py_buffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))


def group_start(file: Any, group: int) -> int:
    """Return where a row group's bytes begin."""
    first = file.metadata.row_group(group).column(0)
    return int(first.dictionary_page_offset or first.data_page_offset)


def read_arrow(path: Path, wanted: Sequence[str] | None) -> Iterator[Record | RecordError]:
    """Yield the rows of an Arrow IPC stream or file; only the `wanted` columns."""
    try:
        with mapped(path) as source:
            for batch in arrow_batches(source):
                columns = batch.select(chosen(batch.schema.names, wanted))
                for first in range(0, columns.num_rows, BATCH_ROWS):
                    yield from rows_of(columns.slice(first, BATCH_ROWS))
    except (pa.ArrowException, OSError) as error:
        raise_if_disk(error)
        yield RecordError(f"damaged Arrow ({type(error).__name__})")


def arrow_batches(source: Any) -> Iterator[Any]:
    """Yield the record batches of either kind of Arrow file; the IPC file format begins with its name."""
    magic = source.read(6)
    source.seek(0)
    if magic == b"ARROW1":
        file = pa.ipc.open_file(source)
        yield from (file.get_batch(n) for n in range(file.num_record_batches))
    else:
        yield from pa.ipc.open_stream(source)


def chosen(names: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """Return the wanted columns of a table, in its order; None wants all."""
    return [name for name in names if wanted is None or name in wanted]


def rows_of(batch: Any) -> Iterator[Record | RecordError]:
    """Yield a batch's rows; a row with text that is no UTF-8 as an objection."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield RecordError("invalid UTF-8")
            return
        for n in range(batch.num_rows):
            yield from rows_of(batch.slice(n, 1))
