"""The beginning of a file of documents: a file of the corpus of which only the first records are read."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_prep.byte_ranges import HashedFile
from data_prep.config import SourceConfig
from data_prep.documents import raw_records
from data_prep.formats import Format, format_of
from data_prep.shards import SourceFile
from data_prep.sources import CorpusFile, FoundFile, look_into
from data_prep.streams import ObjectionError, open_stream

RECORDS = 200  # of a file, at most
SAMPLE_BYTES = 2**20  # of a file, at most
PAGE_BYTES = 8 * 2**20  # larger pages are not opened here


def sampled_file(source: SourceConfig, name: str, location: Path) -> CorpusFile | None:
    """Return a file as a member of the corpus, but for its hash; None if only preparing can open it."""
    form = format_of(location.name, source.format) or Format()
    size = location.stat().st_size
    is_page = not form.has_rows and form.kind != "text"
    if form.is_archive or (is_page and size > PAGE_BYTES):
        return None
    columns = look_into(FoundFile(source=source, name=name, location=location), size)
    info = SourceFile(source=source.label, path=name, bytes=size, sha256="")
    return CorpusFile(info=info, location=location.resolve(), columns=columns, hashed=HashedFile("", size))


def first_records(file: CorpusFile) -> Iterator[Any]:
    return itertools.islice(raw_records(file.location, file.columns.format, 0, file.info.bytes), RECORDS)


def beginning(file: CorpusFile, folder: Path) -> CorpusFile:
    """Return a file, or of a long plain text its first bytes as a file of their own."""
    if file.columns.format.kind != "text":
        return file
    form = file.columns.format
    with open_stream(file.location, form.compression, form.encoding, cr_lines=form.cr_lines) as stream:
        try:
            data = stream.read(SAMPLE_BYTES + 1)
        except ObjectionError:  # which reading it will say again
            return file
    if len(data) <= SAMPLE_BYTES:
        return file
    piece = folder / "beginning.txt"
    piece.write_bytes(data.decode(errors="ignore").encode() if is_utf8(data) else data[:SAMPLE_BYTES])
    columns = replace(file.columns, format=replace(form, compression=None, encoding=None, cr_lines=False))
    info = replace(file.info, bytes=piece.stat().st_size)
    return CorpusFile(info=info, location=piece, columns=columns, hashed=file.hashed)


def is_cut_short(file: CorpusFile) -> bool:
    """Tell whether only the lines are read that begin in a file's first bytes."""
    form = file.columns.format
    return form.kind == "jsonl" and form.may_be_cut and file.info.bytes > SAMPLE_BYTES


def is_utf8(data: bytes) -> bool:
    """Tell whether bytes are UTF-8 but for a character that their end may cut."""
    try:
        data[: len(data) - 4].decode()
    except UnicodeDecodeError as error:
        return error.end >= len(data) - 4
    return True


def read_bytes(file: CorpusFile, piece: CorpusFile, records: int) -> float:
    """Return about how many bytes of a file on the disk its first records are; `piece` is what was read of it."""
    form = file.columns.format
    if not form.has_rows:
        return file.info.bytes if piece is file else min(piece.info.bytes / shrinks(file, piece), file.info.bytes)
    if records < RECORDS and not is_cut_short(file):
        return file.info.bytes
    if form.kind == "parquet":
        return file.info.bytes * records / max(records, int(pq.read_metadata(file.location).num_rows))
    sizes = [raw_size(raw) for raw in itertools.islice(first_records(file), records)]
    return min(sum(sizes) / shrinks(file, piece), file.info.bytes)


def shrinks(file: CorpusFile, piece: CorpusFile) -> float:
    """Return how many times smaller compression makes a file, as far as its beginning tells; 1 if it is not packed."""
    if file.columns.format.compression is None:
        return 1.0
    raw = [one for one in first_records(file if file.columns.format.has_rows else piece) if isinstance(one, bytes)]
    texts = b"\n".join(raw)[:SAMPLE_BYTES]
    return len(texts) / len(zlib.compress(texts)) if texts else 1.0


def raw_size(raw: Any) -> int:
    if isinstance(raw, bytes | str):
        return len(raw) + 1
    return 0 if isinstance(raw, ObjectionError) else sum(len(str(value)) + 1 for value in raw.values())
