"""What a part of a file depends on: the digests of its byte ranges, hashed in the same pass as the file.

A part of JSON lines reads past its end to the end of the line that its last byte lies in, and looks at the byte before
its first one; a part of a long text reads past its last window as far as it searches for the end of a paragraph; a part
of a Parquet file reads its row groups and the file's footer. Only what it reads is hashed, so a byte that changed
elsewhere leaves the part's digest, and with it its encoded documents, as they are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.files.bounded_io import DOCUMENT_BYTES
from data_prep.read.long_texts import REACH_BYTES, WINDOW_BYTES
from data_prep.read.parts import FilePart
from data_prep.read.tables import group_start

Told = Callable[[int], None]  # told of the bytes that were read

CHUNK_BYTES = 2**20
BEYOND_BYTES = 1024  # of a row group: Arrow reads a little past the columns of some old writers
FOOTER_BYTES = 8  # Parquet: the length of the metadata before it, and the format's name


@dataclass(frozen=True, slots=True)
class HashedRange:
    """One range: the digest of all of it, of its bytes up to the first end of a line, and its last byte."""

    sha256: str
    head: str
    has_line_end: bool
    last: int


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A file's digest, and the digests of its ranges of `step` bytes, if it is cut into such."""

    sha256: str
    bytes: int
    step: int = 0
    ranges: tuple[HashedRange, ...] = ()


def hashed_file(path: Path, step: int | None, told: Told = lambda size: None) -> HashedFile:
    """Hash a file, and its ranges of `step` bytes if it is longer than one; `told` is told of what has been read."""
    size = path.stat().st_size
    whole = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # read further ahead

        def read(limit: int) -> bytes:
            chunk = stream.read(min(CHUNK_BYTES, limit))
            whole.update(chunk)
            told(len(chunk))
            return chunk

        if step is None or size <= step:
            while read(CHUNK_BYTES):
                pass
            return HashedFile(whole.hexdigest(), size)
        ranges = tuple(iter(lambda: hashed_range(read, step), None))
    return HashedFile(whole.hexdigest(), size, step, ranges)


def hashed_range(read: Callable[[int], bytes], step: int) -> HashedRange | None:
    """Hash the next `step` bytes; None at the end of the file."""
    own, head = hashlib.sha256(), hashlib.sha256()
    has_line_end, last, left = False, -1, step
    while left and (chunk := read(left)):
        own.update(chunk)
        if not has_line_end:
            found = chunk.find(b"\n")
            has_line_end = found >= 0
            head.update(chunk[: found + 1] if has_line_end else chunk)
        last, left = chunk[-1], left - len(chunk)
    return None if last < 0 else HashedRange(own.hexdigest(), head.hexdigest(), has_line_end, last)


def content_of(part: FilePart, file: HashedFile) -> list[Any]:
    """Return what identifies the bytes that a part is read from, as JSON; for a file in one part, its digest."""
    if not file.ranges or part.start % file.step or part.end not in (file.bytes, part.start + file.step):
        return [file.sha256, part.start, part.end]
    kinds = {"jsonl": of_lines, "text": of_text, "parquet": of_table}
    read = list(kinds[part.columns.format.kind](part, file))
    return [read, part.start, part.end, *([file.bytes] if part.columns.format.kind != "jsonl" else [])]


def of_lines(part: FilePart, file: HashedFile) -> Iterator[Any]:
    """Yield what lines that begin in the part depend on."""
    number = part.start // file.step
    yield file.ranges[number - 1].last if number else None
    yield file.ranges[number].sha256
    if file.ranges[number].last == ord("\n"):
        return
    furthest = number + 1 + -(-(DOCUMENT_BYTES + 1) // file.step)  # no more than this is read of a longer line
    for following in file.ranges[number + 1 : furthest + 1]:
        yield following.head
        if following.has_line_end:
            return


def of_text(part: FilePart, file: HashedFile) -> Iterator[Any]:
    """Yield what those pieces of a long text depend on whose windows begin in the part."""
    first = -(-part.start // WINDOW_BYTES) * WINDOW_BYTES
    last = (part.end - 1) // WINDOW_BYTES * WINDOW_BYTES
    if first < part.end:
        yield from overlapping(file, first, last + WINDOW_BYTES + REACH_BYTES)


def of_table(part: FilePart, file: HashedFile) -> Iterator[Any]:
    """Yield what the row groups of a Parquet file that begin in the part depend on."""
    path = Path(part.location)
    try:
        with pq.ParquetFile(path) as table:
            yield footer(path, file.bytes)
            for number in range(table.num_row_groups):
                if part.start <= group_start(table, number) < part.end:
                    yield from overlapping(file, *span(table.metadata.row_group(number)))
    except (pa.ArrowException, OSError):  # damaged: each part says so, whatever it is that is wrong
        yield file.sha256


def footer(path: Path, size: int) -> str:
    """Return the digest of a Parquet file's metadata."""
    with path.open("rb") as stream:
        stream.seek(size - FOOTER_BYTES)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(max(0, size - FOOTER_BYTES - length))
        return hashlib.sha256(stream.read()).hexdigest()


def span(group: Any) -> tuple[int, int]:
    """Return where the bytes of a row group's columns begin and end."""
    columns = [group.column(number) for number in range(group.num_columns)]
    begins = [min(c.dictionary_page_offset or c.data_page_offset, c.data_page_offset) for c in columns]
    ends = [begin + c.total_compressed_size for begin, c in zip(begins, columns, strict=True)]
    return min(begins), max(ends) + BEYOND_BYTES


def overlapping(file: HashedFile, begin: int, end: int) -> Iterator[str]:
    """Yield the digests of the ranges that hold a byte from `begin` to `end`."""
    for following in file.ranges[begin // file.step : -(-end // file.step)]:
        yield following.sha256
