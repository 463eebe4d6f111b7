"""Trace a row's documents back to their sources: the original text of each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from cluster.disk.atomic_files import sha256_of
from cluster.errors import DataError
from data_prep.files.archives import SEPARATOR, find_member, unpack
from data_prep.files.bounded_io import DOCUMENT_BYTES, END, open_stream
from data_prep.files.folders import name_on_disk
from data_prep.files.formats import Format, format_of, with_more
from data_prep.read.parts import decoded, parsed
from data_prep.read.records import Raw, raw_records
from data_prep.rows.grouping import joined
from data_prep.rows.row_layouts import layout_from
from data_prep.shards import Manifest, SourceFile

RAW_KINDS = {"article", "page", "xml"}  # shown as source text, which people can read


def read_document(folder: Path, manifest: Manifest, source: int, position: int, relative_to: Path | None = None) -> str:
    """Return the raw text, or the raw JSON line, of the document that a `Piece` identifies by source and position.

    A table's row is returned as JSON, a PDF or book as its text. `relative_to` is the source's setting. Raises
    DataError if the file is gone or has changed since it was prepared.
    """
    file = manifest.files[source]
    location = location_of(folder, file, relative_to or Path())
    check_unchanged(location, file)
    form = form_of(file)
    if form.kind in RAW_KINDS:
        with open_stream(location, form.compression, form.encoding) as stream:
            raw: Raw = stream.read()
    else:
        records: Iterator[Raw] = raw_records(location, form, 0, END)
        if file.joined:
            records = joined(records, layout_from(file.joined), parsed)
        raw = next(itertools.islice(records, position, None), b"")
    if isinstance(raw, bytes):
        return decoded(raw).rstrip("\r\n")
    return raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False, default=str)


def location_of(folder: Path, file: SourceFile, relative_to: Path) -> Path:
    """Return a manifest file's location: its own path, in the cache, or unpacked from an archive."""
    name, _, member = file.path.partition(SEPARATOR)
    from data_prep.fetch.download import cache_path  # httpx takes 0.2 s to import

    location = cache_path(folder, name) if "://" in name else relative_to / name
    if not location.exists() and "\\x" in name:
        location = relative_to / name_on_disk(name)
    if not member or not location.is_file():
        return location
    found = find_member(location, member, folder / "unpacked")
    if found is None:
        unpack(location, format_of(location.name) or Format(), folder / "unpacked")
        found = find_member(location, member, folder / "unpacked")
    return found or location


def document_place(file: SourceFile, position: int) -> str:
    """Return a document's file and, if the file may hold several, the line (from 1) or the record number."""
    form = form_of(file)
    if form.kind == "jsonl" and form.compression is None and not file.joined:
        return f"{file.path}:{position + 1}"
    return f"{file.path}, record {position + 1}" if form.has_many or file.bytes > DOCUMENT_BYTES else file.path


def form_of(file: SourceFile) -> Format:
    path = urlsplit(file.path).path if "://" in file.path else file.path
    return with_more(format_of(path) or Format(), file.reading)


@lru_cache(maxsize=4096)
def check_unchanged(location: Path, file: SourceFile) -> None:
    """Raise DataError unless a file is unchanged since it was prepared; each file is hashed once."""
    if not location.is_file():
        raise DataError(
            f"{location}: not found from {Path.cwd()}; run the command in the folder in which the data was prepared"
        )
    if sha256_of(location) != file.sha256:
        raise DataError(
            f"{location}: changed since the data was prepared, so it may not hold what was trained on; "
            "restore it, or run `shardline prepare` again"
        )
