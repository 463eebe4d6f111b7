"""Infer what a file holds from its first records, for the YAML that `shardline init` writes."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.errors import ConfigError, DataError
from data_prep.config import SourceConfig
from data_prep.fetch.sources import columns_in
from data_prep.files.formats import Format
from data_prep.read.column_choice import SNIFFED_RECORDS, longest_list, parsed_rows, sampled, with_rows, wrapping
from data_prep.read.parts import parsed
from data_prep.read.text_layouts import with_layout
from data_prep.rows.column_looks import columns_of
from data_prep.rows.field_guesses import TOO_DEEP
from data_prep.rows.field_proposals import proposal_lines, quoted_path
from data_prep.rows.fields import PLACEHOLDER
from data_prep.rows.grouping import inner_rows

KINDS = {"text": "text", "pair": "pairs", "messages": "conversations"}
KIND_OF_KEY = {"text": "text", "prompt": "pairs", "completion": "pairs"}  # all other keys are of conversations

NO_HEADER = "Its first line is no header"
ENCODING = re.compile(r"`encoding(?:`, such as|:) ([\w-]+)")  # how messages name an encoding to write


@dataclass(frozen=True)
class FirstLook:
    """The kind of some data, None if it cannot be inspected here, and the lines of YAML to write below its path.

    `others` are files of another kind, with their kinds: what decides is the kind with the most bytes. `refused` says
    why a file cannot be read, `columns` which columns it has if they are not understood. Of a folder, `refused_files`
    are those that cannot be read, and `differing` tells of files that need other settings than the rest.
    """

    kind: str | None
    lines: tuple[str, ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    refused: str = ""
    columns: tuple[str, ...] = ()
    refused_files: tuple[tuple[str, str], ...] = ()
    differing: str = ""


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
        return FirstLook("text", refused=note)
    found = look_into(source.model_copy(update={"encoding": named[1]}), location, form)
    return replace(found, lines=(*lines, f"encoding: {PLACEHOLDER}  # such as {named[1]}", *found.lines))


def one_object(source: SourceConfig, location: Path, form: Format, note: str) -> FirstLook:
    """Infer the kind of a file of one JSON object: that of the rows in its longest list, if it has one."""
    laid_out = with_layout(form, location, location.name, source)
    rows, _ = parsed_rows(sampled(location, laid_out))
    path = longest_list(rows[0]) if rows else None
    if path is None:
        return FirstLook("text", refused=note)
    found = look_into(with_rows(source, path), location, form)
    return replace(found, lines=(f"# {location.name}: {note}", *found.lines))


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
    kind = KIND_OF_KEY.get(key, "conversations")
    return FirstLook(kind, (f"# of {location.name}:", *lines), columns=tuple(columns_of(rows)))
