"""What somebody's data is, told from its first files: for the YAML that a run begins with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigError, DataError
from data_prep.config import SourceConfig
from data_prep.documents import find_columns, parsed_rows, sampled
from data_prep.formats import Format, format_of, with_html
from data_prep.proposals import proposal_lines
from data_prep.sources import files_of

KINDS = {"text": "text", "pair": "pairs", "messages": "conversations"}
FILES = 8  # so many of a folder are looked into
KIND_OF_KEY = {"text": "text", "prompt": "pairs", "completion": "pairs"}  # all others are of conversations


@dataclass(frozen=True)
class FirstLook:
    """The kind of some data, None if it is not there to be looked at; and lines of YAML that stand below its path."""

    kind: str | None
    lines: tuple[str, ...] = ()


def look_at(data: str) -> FirstLook:
    """Return what a file, a folder or a glob holds; the first file that is not understood decides what to write."""
    kinds: list[str] = []
    for location, form in some_files(data):
        found = look_into(data, location, form)
        if found.lines:
            return found
        if found.kind is not None:
            kinds.append(found.kind)
    return FirstLook(max(kinds, key=kinds.count, default=None))


def some_files(data: str) -> Iterator[tuple[Path, Format]]:
    """Yield the first files of some data and their formats; nothing if it is not here."""
    try:
        named, _ = files_of(SourceConfig(path=data), {})
    except DataError:
        return
    for _, location in named[:FILES]:
        yield location, with_html(format_of(location.name) or Format(), "article")


def look_into(data: str, location: Path, form: Format) -> FirstLook:
    """Return what one file holds."""
    if form.is_archive or location.stat().st_size == 0:
        return FirstLook(None)
    if not form.has_rows:
        return FirstLook("text")
    try:
        return FirstLook(KINDS[find_columns(location, SourceConfig(path=data), form).shape])
    except DataError as problem:
        rows, _ = parsed_rows(sampled(location, form))
        if not rows:
            raise ConfigError(str(problem)) from None
        lines = proposal_lines(rows)
    key = next((line.split(":")[0].strip() for line in lines if line.startswith("  ")), "messages")
    return FirstLook(KIND_OF_KEY.get(key, "conversations"), (f"# of {location.name}:", *lines))
