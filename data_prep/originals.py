"""Back from a row to the documents in it: the text as it stands in the source."""

from __future__ import annotations

import itertools
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from cluster.errors import DataError
from cluster.files import sha256_of
from data_prep.download import cache_path
from data_prep.shards import Manifest, SourceFile
from data_prep.sources import RECORD_SUFFIXES


def read_document(folder: Path, manifest: Manifest, source: int, position: int) -> str:
    """Return the raw text, or the raw JSON line, of the document that a `Piece` names by source and position.

    Raises DataError if the file is gone, or is no longer the one that was prepared.
    """
    file = manifest.files[source]
    location = cache_path(folder, file.path) if is_url(file) else Path(file.path)
    check_unchanged(location, file)
    with location.open("rb") as stream:
        raw = next(itertools.islice(stream, position, None), b"") if has_records(file) else stream.read()
    return raw.decode("utf-8-sig").rstrip("\r\n")


def document_place(file: SourceFile, position: int) -> str:
    """Return a document's file and, where lines are documents, its line as editors count them."""
    return f"{file.path}:{position + 1}" if has_records(file) else file.path


def has_records(file: SourceFile) -> bool:
    name = urlsplit(file.path).path if is_url(file) else file.path
    return Path(name).suffix.lower() in RECORD_SUFFIXES


def is_url(file: SourceFile) -> bool:
    return file.path.startswith(("http://", "https://"))


@lru_cache(maxsize=4096)
def check_unchanged(location: Path, file: SourceFile) -> None:
    """Raise DataError unless a file is the one in the manifest; each is hashed once."""
    if not location.is_file():
        raise DataError(
            f"{location}: no longer here (seen from {Path.cwd()}); run from the folder in which the data was prepared"
        )
    if sha256_of(location) != file.sha256:
        raise DataError(
            f"{location}: changed since the data was prepared, so it may not hold what was trained on; "
            "restore it, or run `shardline prepare` again"
        )
