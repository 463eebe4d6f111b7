"""From bytes to documents: one for each text file, one for each line of a .jsonl file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.errors import ConfigError, DataError

Shape = Literal["text", "pair", "messages"]
Role = Literal["text", "prompt", "completion", "messages"]
SNIFFED_LINES = 100
EXCERPT_BYTES = 500

KNOWN_COLUMNS: tuple[tuple[Shape, tuple[str, ...]], ...] = (
    ("messages", ("messages",)),
    ("pair", ("prompt", "completion")),
    ("pair", ("question", "answer")),
    ("text", ("text",)),
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What a file's documents are made of. Without names, the whole file is one text."""

    shape: Shape
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Part:
    """The documents whose first byte lies in `start` to `end` of one file."""

    file: int
    location: str
    start: int
    end: int
    columns: Columns


@dataclass(frozen=True, slots=True)
class Turn:
    """Who says what. A text is one turn of the role 'text'; a pair is a user's and an assistant's."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document; `record` counts the lines of its part from 0."""

    record: int
    shape: Shape
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is left out, why, and how it begins."""

    record: int
    reason: str
    excerpt: str = field(default="", compare=False)


class ObjectionError(Exception):
    """Raised inside this file only: why a record is rejected."""


def read_part(part: Part) -> Iterator[Document | Rejected]:
    """Yield one document or rejection for each record of a part, in order; nothing is cleaned yet."""
    for record, raw in enumerate(read_records(part)):
        try:
            yield Document(record, part.columns.shape, turns_of(raw, part.columns))
        except ObjectionError as objection:
            yield Rejected(record, str(objection), raw[:EXCERPT_BYTES].decode("utf-8", "replace"))


def read_records(part: Part) -> Iterator[bytes]:
    """Yield the raw records of a part: its file, or its lines without their ends."""
    with Path(part.location).open("rb") as stream:
        if not part.columns.names:
            yield stream.read()
            return
        if part.start > 0:  # a record belongs to the part in which its first byte lies
            stream.seek(part.start - 1)
            stream.readline()
        while stream.tell() < part.end:
            yield stream.readline().rstrip(b"\r\n")


def turns_of(raw: bytes, columns: Columns) -> tuple[Turn, ...]:
    """Return a record's turns. Raises ObjectionError."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ObjectionError("invalid UTF-8") from None
    if not columns.names:
        return (Turn("text", text),)
    if not text.strip():
        raise ObjectionError("blank line")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise ObjectionError("bad JSON") from None
    if not isinstance(row, dict):
        raise ObjectionError("not a JSON object")
    if not all(name in row for name in columns.names):
        raise ObjectionError("missing column")
    return turns_of_row(row, columns)


def turns_of_row(row: Mapping[str, Any], columns: Columns) -> tuple[Turn, ...]:
    """Return the turns of a row that has its columns. Raises ObjectionError."""
    values = [row[name] for name in columns.names]
    if columns.shape == "messages":
        messages = values[0]
        if not isinstance(messages, list) or not all(is_message(message) for message in messages):
            raise ObjectionError("not a list of role and content")
        return tuple(Turn(message["role"], message["content"]) for message in messages)
    if not all(isinstance(value, str) for value in values):
        raise ObjectionError("not text")
    roles = ("text",) if columns.shape == "text" else ("user", "assistant")
    return tuple(Turn(role, value) for role, value in zip(roles, values, strict=True))


def is_message(value: Any) -> bool:
    """Tell whether a value is a message whose role and content are text."""
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def find_columns(location: Path, label: str, fields: Mapping[Role, str]) -> Columns:
    """Return the columns of a .jsonl file from its first rows, `fields` overriding what their names tell.

    Raises DataError with the columns seen and the line to write, if they cannot be told.
    """
    seen: dict[str, Any] = {}
    for row in first_rows(location):
        columns = columns_of(row, label, fields)
        if columns is not None:
            return columns
        seen = {**row, **seen}
    if not seen:
        raise DataError(
            f"{location}: none of its first {SNIFFED_LINES} lines is a JSON object; "
            'expected one object on each line, such as {"prompt": "...", "completion": "..."}'
        )
    texts = [name for name, value in seen.items() if isinstance(value, str)]
    example = f"prompt: {texts[0]}, completion: {texts[1]}" if len(texts) > 1 else f"text: {(texts or ['COLUMN'])[0]}"
    problem = f"no columns {' and '.join(sorted(fields.values()))}" if fields else "cannot tell what its columns are"
    raise DataError(
        f"{location}: {problem}; columns seen: {', '.join(seen)}. Understood by themselves are text; prompt and "
        "completion; question and answer; messages. For others write below this source in data.sources, for example: "
        f"`fields: {{{example}}}`"
    )


def first_rows(location: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects among a file's first lines."""
    with location.open("rb") as stream:
        for line in itertools.islice(stream, SNIFFED_LINES):
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                continue  # counted when the file is read
            if isinstance(row, dict):
                yield row


def columns_of(row: Mapping[str, Any], label: str, fields: Mapping[Role, str]) -> Columns | None:
    """Return the columns that a row's names, or else `fields`, tell; None if the row lacks them."""
    choices = [named_columns(label, fields)] if fields else KNOWN_COLUMNS
    for shape, names in choices:
        if all(name in row for name in names):
            return Columns(shape=shape, names=names)
    return None


def named_columns(label: str, fields: Mapping[Role, str]) -> tuple[Shape, tuple[str, ...]]:
    """Return the shape and column names that a source's `fields` give."""
    roles = set(fields)
    if roles == {"text"}:
        return "text", (fields["text"],)
    if roles == {"messages"}:
        return "messages", (fields["messages"],)
    if roles <= {"prompt", "completion"}:
        return "pair", (fields.get("prompt", "prompt"), fields.get("completion", "completion"))
    raise ConfigError(
        f"data.sources: {label}: fields names {', '.join(sorted(roles))} together; "
        "give text, or prompt and completion, or messages"
    )
