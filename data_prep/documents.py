"""From the bytes of a file to documents: one for each page or text, one for each row of what has rows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import DataError
from data_prep.formats import Format
from data_prep.records import Raw, raw_records
from data_prep.shapes import EXTRA_COLUMNS, Fields, Shape, Turn, columns_of, example_fields, shortened, turns_of_row
from data_prep.stamps import Stamp
from data_prep.streams import ObjectionError

__all__ = ["Columns", "Document", "Part", "Rejected", "Turn", "document_of", "find_columns", "raw_records", "read_part"]

SNIFFED_RECORDS = 100
EXCERPT_BYTES = 500
TEXT, JSONL = Format(), Format(kind="jsonl")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How a file is read and what its documents are made of. Without names, a document is one text."""

    shape: Shape
    names: tuple[str, ...] = ()
    format: Format = TEXT


@dataclass(frozen=True, kw_only=True)
class Part:
    """The documents whose first byte lies in `start` to `end` of one file; all, if its format is never cut."""

    file: int
    location: str
    start: int
    end: int
    columns: Columns
    stamp: Stamp | None = None
    """What the file was when it was hashed; not part of what a slice is."""

    def check_unchanged(self) -> None:
        """Raise DataError if the file is no longer the one that was hashed; asked before and after it is read."""
        if self.stamp is not None:
            self.stamp.check()


@dataclass(frozen=True, slots=True)
class Document:
    """One document; `record` counts the records of its part from 0."""

    record: int
    shape: Shape
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is left out, why, and how it begins."""

    record: int
    reason: str
    excerpt: str = field(default="", compare=False)


def read_part(part: Part) -> Iterator[Document | Rejected]:
    """Yield one document or rejection for each record of a part, in order; nothing is cleaned yet."""
    columns = part.columns
    part.check_unchanged()
    wanted = (*columns.names, *EXTRA_COLUMNS)
    records = raw_records(Path(part.location), columns.format, part.start, part.end, wanted)
    for record, raw in enumerate(records):
        yield document_of(record, raw, columns)
    part.check_unchanged()


def document_of(record: int, raw: Raw, columns: Columns) -> Document | Rejected:
    """Return what a record is: a document, or why it is none."""
    try:
        return Document(record, columns.shape, turns_of(raw, columns))
    except ObjectionError as objection:
        reason = str(objection)
        if reason == "invalid UTF-8" and columns.format.encoding is not None:
            reason = f"invalid {columns.format.encoding}"
        return Rejected(record, reason, excerpt_of(raw))


def excerpt_of(raw: Raw) -> str:
    """Return the beginning of a record, for a person to look at."""
    if isinstance(raw, bytes):
        return raw[:EXCERPT_BYTES].decode("utf-8", "replace")
    return "" if isinstance(raw, ObjectionError) else str(raw)[:EXCERPT_BYTES]


def turns_of(raw: Raw, columns: Columns) -> tuple[Turn, ...]:
    """Return a record's turns. Raises ObjectionError."""
    if isinstance(raw, ObjectionError):
        raise raw
    if columns.names:
        return turns_of_row(parsed(raw), columns.shape, columns.names)
    return (Turn("text", decoded(raw) if isinstance(raw, bytes) else str(raw)),)


def parsed(raw: Raw) -> Mapping[str, Any]:
    """Return a record as a row; a text alone is the row {text: ...}. Raises ObjectionError."""
    if isinstance(raw, Mapping):
        return raw
    if isinstance(raw, ObjectionError):
        raise raw
    text = decoded(raw) if isinstance(raw, bytes) else raw
    if not text.strip():
        raise ObjectionError("blank line")
    try:
        row = json.loads(text)
    except RecursionError:
        raise ObjectionError("nested too deeply") from None
    except ValueError:
        raise ObjectionError("bad JSON") from None
    if isinstance(row, str):
        return {"text": row}
    if not isinstance(row, dict):
        raise ObjectionError("not a JSON object")
    return row


def decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ObjectionError("invalid UTF-8") from None


def find_columns(location: Path, label: str, fields: Fields, form: Format = JSONL) -> Columns:
    """Return the columns of a file of rows from its first ones, `fields` overriding what their names tell.

    Raises DataError with the columns seen and the line to write, if they cannot be told.
    """
    seen: dict[str, Any] = {}
    objections: list[str] = []
    records = list(itertools.islice(raw_records(location, form, 0, location.stat().st_size), SNIFFED_RECORDS))
    for raw in records:
        try:
            row = parsed(raw)
        except ObjectionError as objection:
            objections.append(str(objection))
            continue
        found = columns_of(row, label, fields)
        if found is not None:
            return Columns(shape=found[0], names=found[1], format=form)
        seen = {**row, **seen}
    if all(isinstance(raw, ObjectionError) for raw in records) and len(records) < SNIFFED_RECORDS:
        return Columns(shape="text", names=("text",), format=form)  # damaged: each objection is counted
    if form.kind == "json" and len(records) == 1 and not fields:
        note = objections[0] if objections else "one JSON value, not rows"
        return Columns(shape="text", format=Format(kind="refused", note=note))
    raise DataError(untold(location, seen, objections, fields))


def untold(location: Path, seen: Mapping[str, Any], objections: list[str], fields: Fields) -> str:
    """Say what was found instead of known columns, and what to write."""
    if not seen:
        reasons = ", ".join(sorted(set(objections)))
        return (
            f"{location}: none of its first {SNIFFED_RECORDS} records is a row ({reasons}); "
            'expected one object on each line, such as {"prompt": "...", "completion": "..."}, or a table with a header'
        )
    problem = f"no columns {' and '.join(sorted(fields.values()))}" if fields else "cannot tell what its columns are"
    return (
        f"{location}: {problem}; columns seen: {shortened(seen)}. Understood by themselves are text; prompt and "
        "completion; instruction, input and output; question and answer; messages; conversations; chosen. For others "
        f"write below this source in data.sources, for example: `fields: {{{example_fields(seen)}}}`"
    )
