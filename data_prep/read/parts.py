"""From the bytes of a file to documents: one for each page or text, one for each row of what has rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.documents import Document, Shape, Turn
from data_prep.files.bounded_io import RecordError
from data_prep.files.file_stamps import Stamp
from data_prep.files.formats import Format
from data_prep.read.records import Raw, raw_records
from data_prep.rows.grouping import joined
from data_prep.rows.record_shapes import turns_of_row, variables_of_row
from data_prep.rows.row_layouts import EXTRA_COLUMNS, Layout
from data_prep.rows.value_paths import without_nulls

__all__ = [
    "Columns",
    "Document",
    "FilePart",
    "Rejected",
    "Turn",
    "document_of",
    "raw_records",
    "read_part",
]

EXCERPT_BYTES = 500
TEXT = Format()
PLAIN = Layout(text=("text",))


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How a file is read and what its documents are made of. Without a layout, a document is one text.

    `names` are the columns that are read, `unused` those that hold text and are not; `notes` tell a person more.
    """

    shape: Shape
    layout: Layout | None = None
    names: tuple[str, ...] = ()
    format: Format = TEXT
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns that are read of a table."""
        return (*self.names, *EXTRA_COLUMNS)

    @property
    def may_be_cut(self) -> bool:
        """Whether a large file may be cut, so that several tasks read it."""
        return self.format.may_be_cut and not (self.layout is not None and self.layout.is_whole)


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """The documents whose first byte lies in `start` to `end` of one file; all, if its format is never cut."""

    file: int
    location: str
    start: int
    end: int
    columns: Columns
    stamp: Stamp | None = None
    """The file's size and time when it was hashed; not part of a slice's digest."""

    @property
    def begins_markdown(self) -> bool:
        """Whether the part's first record is the beginning of a Markdown file, where front matter stands."""
        return self.columns.format.is_markdown and self.start == 0

    def check_unchanged(self) -> None:
        """Raise DataError if the file is no longer the one that was hashed; called before and after it is read."""
        if self.stamp is not None:
            self.stamp.check()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is rejected, why, and how it begins."""

    record: int
    reason: str
    excerpt: str = field(default="", compare=False)


def read_part(part: FilePart) -> Iterator[Document | Rejected]:
    """Yield one document or rejection for each record of a part, in order; nothing is cleaned yet."""
    part.check_unchanged()
    records = records_of(Path(part.location), part.columns, part.start, part.end)
    for record, raw in enumerate(records):
        yield document_of(record, raw, part.columns)
    part.check_unchanged()


def records_of(path: Path, columns: Columns, start: int, end: int) -> Iterator[Raw]:
    """Yield the records of a range of a file, one for each document: rows that are one conversation put together."""
    layout = columns.layout
    records = raw_records(path, columns.format, start, end, columns.wanted)
    return joined(records, layout, parsed) if layout is not None and layout.is_whole else records


def document_of(record: int, raw: Raw, columns: Columns) -> Document | Rejected:
    """Return a record as a document, or why it is rejected."""
    layout = columns.layout
    try:
        if layout is None:
            return Document(record, "text", (Turn("text", text_of(raw)),))
        row = parsed(raw)
        if layout.text:
            return Document(record, "text", turns_of_row(row, layout))
        return Document(record, layout.shape, turns_of_row(row, layout), variables_of_row(row, layout))
    except RecordError as objection:
        reason = str(objection)
        if reason == "invalid UTF-8" and columns.format.encoding is not None:
            reason = f"invalid {columns.format.encoding}"
        return Rejected(record, reason, excerpt_of(raw))


def excerpt_of(raw: Raw) -> str:
    """Return the beginning of a record, for a person to look at."""
    if isinstance(raw, bytes):
        return raw[:EXCERPT_BYTES].decode("utf-8", "replace")
    return "" if isinstance(raw, RecordError) else str(raw)[:EXCERPT_BYTES]


def text_of(raw: Raw) -> str:
    """Return a record as a text. Raises RecordError."""
    if isinstance(raw, RecordError):
        raise raw
    return decoded(raw) if isinstance(raw, bytes) else str(raw)


def parsed(raw: Raw) -> Mapping[str, Any]:
    """Return a record as a row; a text alone is the row {text: ...}. Raises RecordError."""
    row = row_or_text(raw)
    return {"text": row} if isinstance(row, str) else row


def row_or_text(raw: Raw) -> Mapping[str, Any] | str:
    """Return a record as a row, or as a text if its JSON is a lone string. Raises RecordError."""
    if isinstance(raw, RecordError):
        raise raw
    if isinstance(raw, Mapping):
        return {name: without_nulls(value) if isinstance(value, list | dict) else value for name, value in raw.items()}
    text = decoded(raw) if isinstance(raw, bytes) else raw
    if not text.strip():
        raise RecordError("blank line")
    try:
        row = json.loads(text)
    except RecursionError:
        raise RecordError("nested too deeply") from None
    except ValueError:
        raise RecordError("bad JSON") from None
    if not isinstance(row, dict | str):
        raise RecordError("not a JSON object")
    return row


def decoded(raw: bytes) -> str:
    """Return bytes as text, without a byte order mark. Raises RecordError if they are not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RecordError("invalid UTF-8") from None
