"""Take samples of a source: some of its files, and the first records of each."""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data_prep.config import SourceConfig
from data_prep.fetch.source_files import FoundFile, Named, expanded
from data_prep.fetch.sources import CorpusFile, look_into
from data_prep.files.bounded_io import RecordError, open_stream
from data_prep.files.formats import Format, format_of, suffix_of
from data_prep.read.byte_ranges import HashedFile
from data_prep.read.parts import raw_records, records_of
from data_prep.shards import SourceFile

RECORDS = 200  # of a file, at most
SAMPLE_BYTES = 2**20  # of a file, at most
FILES = 5  # of a source, evenly spread
COUNTED_BYTES, PACKED_BYTES = 4 * 2**20, 2**19  # of a file, up to which its records are counted; of a compressed one
SMALL_FILES = 40  # of a source, if they are small
SMALL_BYTES = 8 * 2**20  # sampled of them in total
SUFFIXES = 12  # further suffixes, of each of which one file is sampled
ARCHIVE_BYTES = 32 * 2**20  # of a source's archives in total; further ones are not opened here
PAGE_BYTES = 8 * 2**20  # larger pages are not opened here


def opened_here(source: SourceConfig, named: Sequence[Named], cache: Path, passed_over: Counter[str]) -> list[Named]:
    """Return a source's files, with small archives replaced by their members, unpacked in `cache`."""
    found: list[Named] = []
    left = ARCHIVE_BYTES
    for name, location in named:
        form = format_of(location.name, source.format)
        size = location.stat().st_size
        if form is None or not form.is_archive or size > left:
            found.append((name, location))
            continue
        left -= size
        for member in expanded(source, name, location, cache, passed_over):
            if member.problem is None:
                found.append((member.name, member.location))
            else:
                passed_over[member.problem] += 1
    return found


def spread(named: Sequence[Named]) -> list[Named]:
    """Return some files, evenly spread: FILES, or more if they are small, and one of each further suffix."""
    count = min(SMALL_FILES, len(named))
    while count > FILES and sum(map(looked_at_bytes, evenly(named, count))) > SMALL_BYTES:
        count = max(count // 2, FILES)
    chosen = evenly(named, min(count, len(named)))
    seen = {suffix_of(name) for name, _ in chosen}
    others: dict[str, Named] = {}
    for one in named:
        if suffix_of(one[0]) not in seen:
            others.setdefault(suffix_of(one[0]), one)
    return [*chosen, *list(others.values())[:SUFFIXES]]


def evenly(named: Sequence[Named], count: int) -> list[Named]:
    places = np.linspace(0, len(named) - 1, count).round().astype(int)
    return [named[place] for place in dict.fromkeys(places.tolist())]


def looked_at_bytes(one: Named) -> int:
    return min(one[1].stat().st_size, SAMPLE_BYTES)


def sampled_file(source: SourceConfig, name: str, location: Path) -> CorpusFile | None:
    """Return a file of the corpus, without its hash; None if it is opened only by `prepare`."""
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
    """Return a file, or the first bytes of a long plain text as a file of their own."""
    if file.columns.format.kind != "text":
        return file
    form = file.columns.format
    with open_stream(file.location, form.compression, form.encoding, cr_lines=form.cr_lines) as stream:
        try:
            data = stream.read(SAMPLE_BYTES + 1)
        except RecordError:  # reading it reports the same problem
            return file
    if len(data) <= SAMPLE_BYTES:
        return file
    piece = folder / "beginning.txt"
    piece.write_bytes(data.decode(errors="ignore").encode() if is_utf8(data) else data[:SAMPLE_BYTES])
    columns = replace(file.columns, format=replace(form, compression=None, encoding=None, cr_lines=False))
    info = replace(file.info, bytes=piece.stat().st_size)
    return CorpusFile(info=info, location=piece, columns=columns, hashed=file.hashed)


def is_cut_short(file: CorpusFile) -> bool:
    """Return whether only the lines that begin in a file's first bytes are read."""
    form = file.columns.format
    return form.kind == "jsonl" and form.may_be_cut and file.info.bytes > SAMPLE_BYTES


def is_utf8(data: bytes) -> bool:
    """Return whether bytes are UTF-8, except that their end may cut a character."""
    try:
        data[: len(data) - 4].decode()
    except UnicodeDecodeError as error:
        return error.end >= len(data) - 4
    return True


def scales_of(file: CorpusFile, piece: CorpusFile, records: int) -> tuple[float, float]:
    """Estimate how many times as many documents, and as much text, a file holds as the first records that were read.

    `piece` is the file that was read for them. Small files, and those that are always read as a whole, are read to
    their end: then only what is done with a record is estimated.
    """
    form, layout = file.columns.format, file.columns.layout
    is_whole = layout is not None and layout.is_whole
    if form.has_rows and not records:
        return 0.0, 0.0
    if form.has_rows and records < RECORDS and not is_cut_short(file):
        return 1.0, 1.0
    if form.kind == "parquet" and not is_whole:
        return (max(1.0, int(pq.read_metadata(file.location).num_rows) / records),) * 2
    if form.has_rows and (is_whole or file.info.bytes <= (PACKED_BYTES if form.compression else COUNTED_BYTES)):
        sizes = [raw_size(raw) for raw in records_of(file.location, file.columns, 0, file.info.bytes)]
        return max(1.0, len(sizes) / records), max(1.0, sum(sizes) / max(1, sum(sizes[:records])))
    return (file.info.bytes / max(read_bytes(file, piece, records), 1.0),) * 2


def read_bytes(file: CorpusFile, piece: CorpusFile, records: int) -> float:
    """Estimate how many bytes on disk a large file's first records take."""
    if not file.columns.format.has_rows:
        return file.info.bytes if piece is file else min(piece.info.bytes / shrinks(file, piece), file.info.bytes)
    sizes = [raw_size(raw) for raw in itertools.islice(first_records(file), records)]
    return min(sum(sizes) / shrinks(file, piece), file.info.bytes)


def shrinks(file: CorpusFile, piece: CorpusFile) -> float:
    """Estimate how many bytes of UTF-8 a byte on disk holds, from a file's beginning: it may be compressed, and in
    another encoding.
    """
    form = file.columns.format
    if form.compression is None and form.encoding is None:
        return 1.0
    texts = b"\n".join(map(raw_text, first_records(file if form.has_rows else piece)))[:SAMPLE_BYTES]
    stored = texts.decode(errors="ignore").encode(form.encoding, "replace") if form.encoding else texts
    stored = zlib.compress(stored) if form.compression else stored
    return len(texts) / len(stored) if texts else 1.0


def raw_size(raw: Any) -> int:
    return 0 if isinstance(raw, RecordError) else len(raw_text(raw)) + 1


def raw_text(raw: Any) -> bytes:
    """Return a record as the bytes that it takes, about."""
    if isinstance(raw, RecordError):
        return b""
    if isinstance(raw, bytes):
        return raw
    texts = map(str, raw.values()) if isinstance(raw, Mapping) else [str(raw)]
    return "\t".join(texts).encode("utf-8", "replace")
