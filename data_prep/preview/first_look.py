"""Infer what data holds from its first files, for the YAML that `shardline init` writes."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.config_loading import validate
from cluster.errors import ConfigError, DataError
from data_prep.config import SourceConfig
from data_prep.fetch.source_files import files_of
from data_prep.fetch.sources import columns_in
from data_prep.files.formats import Format, format_of, with_html
from data_prep.read.column_choice import SNIFFED_RECORDS, longest_list, parsed_rows, sampled, with_rows, wrapping
from data_prep.read.parts import parsed
from data_prep.read.text_layouts import with_layout
from data_prep.rows.field_guesses import TOO_DEEP
from data_prep.rows.field_proposals import proposal_lines, quoted_path
from data_prep.rows.fields import PLACEHOLDER
from data_prep.rows.grouping import inner_rows

KINDS = {"text": "text", "pair": "pairs", "messages": "conversations"}
FILES = 8  # of a folder that are inspected
KIND_OF_KEY = {"text": "text", "prompt": "pairs", "completion": "pairs"}  # all other keys are of conversations

NO_HEADER = "Its first line is no header"
ENCODING = re.compile(r"`encoding(?:`, such as|:) ([\w-]+)")  # how messages name an encoding to write


@dataclass(frozen=True)
class FirstLook:
    """The kind of some data, None if it cannot be inspected here, and the lines of YAML to write below its path.

    `others` are files of another kind, with their kinds: what decides is the kind with the most bytes.
    """

    kind: str | None
    lines: tuple[str, ...] = ()
    others: tuple[tuple[str, str], ...] = ()


def look_at(data: str, encoding: str | None = None) -> FirstLook:
    """Infer the kind of a file, a folder or a glob; the first file of unknown kind decides what to write.

    `encoding` is that of its files, if the user named it.
    """
    source = validate(SourceConfig, {"path": data, "encoding": encoding}, source="--encoding")
    kinds: dict[Path, str] = {}
    sizes: Counter[str] = Counter()
    for location, form in some_files(data):
        found = look_into(source, location, form)
        if found.lines:
            return found
        if found.kind is not None:
            kinds[location] = found.kind
            sizes[found.kind] += location.stat().st_size
    kind = max(sizes, key=sizes.__getitem__, default=None)
    return FirstLook(kind, others=tuple((path.name, its) for path, its in kinds.items() if its != kind))


def some_files(data: str) -> Iterator[tuple[Path, Format]]:
    """Yield the first files of some data and their formats; nothing if it does not exist here."""
    try:
        named, _ = files_of(SourceConfig(path=data), {})
    except DataError:
        return
    for _, location in named[:FILES]:
        yield location, with_html(format_of(location.name) or Format(), "article")


def look_into(source: SourceConfig, location: Path, form: Format) -> FirstLook:
    """Infer the kind of one file."""
    if form.is_archive or location.stat().st_size == 0:
        return FirstLook(None)
    if not form.has_rows:
        return FirstLook("text")
    laid_out = with_layout(form, location, location.name, source)
    if laid_out.kind == "refused":
        return other_encoding(source, location, form, str(laid_out.note))
    try:
        columns = columns_in(location, source, laid_out)
    except DataError as problem:
        return asked(source, location, laid_out, str(problem))
    if columns.format.kind == "refused":
        return one_object(source, location, form, str(columns.format.note))
    path = source.fields.rows
    return FirstLook(KINDS[columns.shape], ("fields:", f"  rows: {quoted_path(path)}") if path else ())


def other_encoding(source: SourceConfig, location: Path, form: Format, note: str) -> FirstLook:
    """Infer the kind of a file that is not UTF-8, decoded with a possible encoding that the user has to confirm."""
    named = ENCODING.search(note)
    lines = (f"# {location.name}: {note}",)
    if named is None or source.encoding is not None:
        return FirstLook("text", lines)
    found = look_into(source.model_copy(update={"encoding": named[1]}), location, form)
    return FirstLook(found.kind, (*lines, f"encoding: {PLACEHOLDER}  # such as {named[1]}", *found.lines))


def one_object(source: SourceConfig, location: Path, form: Format, note: str) -> FirstLook:
    """Infer the kind of a file of one JSON object: that of the rows in its longest list, if it has one."""
    laid_out = with_layout(form, location, location.name, source)
    rows, _ = parsed_rows(sampled(location, laid_out))
    path = longest_list(rows[0]) if rows else None
    lines = (f"# {location.name}: {note}",)
    if path is None:
        return FirstLook("text", lines)
    found = look_into(with_rows(source, path), location, form)
    return FirstLook(found.kind, (*lines, *found.lines))


def asked(source: SourceConfig, location: Path, form: Format, problem: str) -> FirstLook:
    """Return the lines that the user has to complete for a file whose rows are of unknown kind."""
    rows, _ = parsed_rows(sampled(location, form))
    path = wrapping(rows, source, location, form)
    if path is not None:
        rows, _ = parsed_rows(itertools.islice(inner_rows(rows, path, parsed), SNIFFED_RECORDS))
    if not rows:
        raise ConfigError(problem)
    lines = proposal_lines(rows, path) or [f"# {problem}"]
    deep = next((line.partition(TOO_DEEP)[2] for line in lines if TOO_DEEP in line), None)
    if deep is not None:
        raise ConfigError(
            f"{location}: {TOO_DEEP}{deep}; write one row for each of the innermost objects as JSON lines"
        )
    headless = problem.find(NO_HEADER)
    if headless >= 0:
        lines.insert(0, f"# {problem[headless:]}")
    keys = [line.split(":")[0].strip() for line in lines if line.startswith("  ")]
    key = next((key for key in keys if key != "rows"), "messages")
    return FirstLook(KIND_OF_KEY.get(key, "conversations"), (f"# of {location.name}:", *lines))
