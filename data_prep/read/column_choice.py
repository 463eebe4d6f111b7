"""How a file of rows is read, decided from a sample: where its rows are, and which columns make a document."""

from __future__ import annotations

import codecs
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import DataError
from data_prep.config import SourceConfig
from data_prep.files.bounded_io import RecordError, open_stream
from data_prep.files.formats import Format
from data_prep.read.parts import EXCERPT_BYTES, PLAIN, Columns, parsed, row_or_text
from data_prep.read.records import Raw, raw_records
from data_prep.read.row_samples import decide
from data_prep.rows.column_looks import columns_of, is_messages, most, texts_in
from data_prep.rows.field_proposals import quoted_path
from data_prep.rows.grouping import JOINED_BYTES, columns_read, inner_rows
from data_prep.rows.row_kinds import DIALOGUES, kinds_of
from data_prep.rows.row_layouts import Layout

SNIFFED_RECORDS = 200
JSONL = Format(kind="jsonl")


def find_columns(location: Path, source: SourceConfig, form: Format = JSONL) -> Columns:
    """Return how a file of rows is read, from a sample of them; the source's `fields` override what names tell.

    Raises DataError with the columns seen and the line to write, if that cannot be told.
    """
    records = sampled(location, form)
    rows, objections = parsed_rows(records)
    if not rows and all(isinstance(raw, RecordError) for raw in records) and len(records) < SNIFFED_RECORDS:
        return without_rows(objections, location, form)
    inner = wrapping(rows, source, location, form)
    if inner is not None:
        source = with_rows(source, inner)
        rows, objections = parsed_rows(itertools.islice(inner_rows(rows, inner, parsed), SNIFFED_RECORDS))
    elif form.kind == "json" and len(records) == 1 and not source.fields.given:
        note = None if rows and is_array(location, form) else one_value(rows, objections)
        if note is not None:
            return Columns(shape="text", format=Format(kind="refused", note=note))
    if not rows:
        raise DataError(no_rows(location, objections))
    decision = decide(rows, source, str(location))
    layout = decision.layout
    check_size(location, layout)
    return Columns(
        shape=layout.shape,
        layout=layout,
        names=(str(inner).partition(".")[0],) if inner is not None else columns_read(layout, tuple(columns_of(rows))),
        format=form,
        unused=decision.unused,
        notes=decision.notes,
    )


def sampled(location: Path, form: Format) -> list[Raw]:
    """Return a file's first records and, where it can be read from anywhere, some of its middle and its end, each once.

    The first records may reach into the middle and the end: so many are left out there as begin beyond these places.
    """
    size = location.stat().st_size
    found = list(itertools.islice(raw_records(location, form, 0, size), SNIFFED_RECORDS))
    if form.may_be_cut and len(found) == SNIFFED_RECORDS:
        places = (0, size // 2, size * 9 // 10, size)
        beyond = SNIFFED_RECORDS
        for before, start, end in zip(places, places[1:], places[2:], strict=False):
            beyond -= sum(1 for _ in itertools.islice(raw_records(location, form, before, start), beyond))
            found += itertools.islice(raw_records(location, form, start, end), beyond, beyond + SNIFFED_RECORDS // 4)
    return found


def parsed_rows(records: Iterable[Raw]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return the rows among some records, and what is wrong with the others.

    Texts alone are rows of one column where they are most: some among objects must not tell what the objects are.
    """
    rows: list[Mapping[str, Any]] = []
    texts: list[Mapping[str, Any]] = []
    objections = []
    for raw in records:
        try:
            found = row_or_text(raw)
        except RecordError as objection:
            objections.append(str(objection))
            continue
        if isinstance(found, str):
            texts.append({"text": found})
        else:
            rows.append(found)
    return (rows if len(texts) <= len(rows) else [*rows, *texts]), objections


def without_rows(objections: Sequence[str], location: Path, form: Format) -> Columns:
    """Return how a file is read none of whose records is a row: as what it is, or counting each objection."""
    counts = Counter(objections)
    reasons = ", ".join(counts)
    if len(objections) == 1 or (objections and form.kind in ("parquet", "arrow")):
        return Columns(shape="text", format=Format(kind="refused", note=reasons))
    told = ", ".join(f"{reason}: {count}" for reason, count in counts.items())
    note = f"{location.name}: none of its {len(objections)} records is a row ({told})" if counts else ""
    return Columns(shape="text", layout=PLAIN, format=form, notes=(note or f"{location.name}: it has no row",))


def wrapping(rows: Sequence[Mapping[str, Any]], source: SourceConfig, location: Path, form: Format) -> str | None:
    """Return where in each JSON value of a file its rows lie: as its source says it, or if that is plain."""
    if source.fields.rows is not None:
        return source.fields.rows
    key = inner_key(rows, source) if form.kind == "json" else None
    return None if key is None or is_array(location, form) else key


def with_rows(source: SourceConfig, path: str) -> SourceConfig:
    """Return a source that says where its rows lie."""
    return source.model_copy(update={"fields": source.fields.model_copy(update={"rows": path})})


def is_array(location: Path, form: Format) -> bool:
    """Return whether a JSON file is a list: then what is in it are rows, if only one."""
    with open_stream(location, form.compression, form.encoding, cr_lines=form.cr_lines) as stream:
        return stream.read(EXCERPT_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def inner_key(rows: Sequence[Mapping[str, Any]], source: SourceConfig) -> str | None:
    """Return under which key of the one JSON object of a file its rows lie, if that is plain."""
    if len(rows) != 1 or source.fields.given:
        return None
    lists = [(name, value) for name, value in rows[0].items() if isinstance(value, list) and value]
    found = [name for name, value in lists if all(isinstance(item, dict) for item in value) and not is_messages(value)]
    said = [name for name in found if name != "data" and name in DIALOGUES]  # questions with their answers
    return found[0] if len(found) == 1 and not said else None


def longest_list(row: Mapping[str, Any]) -> str | None:
    """Return which list of a JSON object has the most objects, of several the longest texts; None if none has any."""
    counts = {
        name: (sum(isinstance(item, dict) for item in value), sum(map(len, texts_in(value))))
        for name, value in row.items()
        if isinstance(value, list)
    }
    return max((name for name, (objects, _) in counts.items() if objects), key=lambda name: counts[name], default=None)


def one_value(rows: Sequence[Mapping[str, Any]], objections: Sequence[str]) -> str | None:
    """Return why the one JSON value of a file is no row, and what to do; None if it is one."""
    if objections:
        return objections[0]
    kinds = kinds_of(rows)
    lists = [name for name, value in rows[0].items() if isinstance(value, list)]
    columns = [name for kind in kinds for name in kind.layout.columns(lists)]
    said = next((name for name in columns if any(isinstance(item, str) for item in rows[0][name])), None)
    if kinds and said is None:
        return None
    named = longest_list(rows[0]) or said
    hint = f"; name the list in it, for example `fields: {{rows: {quoted_path(named)}, ...}}`" if named else ""
    hint += f", or `fields: {{messages: {quoted_path(said)}}}` if it is one conversation" if said else ""
    hint = hint or rows_by_key(rows[0])
    return f"one JSON value, not rows{hint}"


def rows_by_key(value: Mapping[str, Any]) -> str:
    """Return how to turn an object whose values are rows, or whose keys are questions, into JSON lines."""
    held = list(value.values())
    if len(held) > 1 and all(isinstance(item, Mapping) for item in held):
        what, program = "each of its values is an object", ".[]"
    elif most(len(key.split()) > 1 for key in value) and most(isinstance(item, str) for item in held):
        what, program = "its keys look like questions", "to_entries[] | {prompt: .key, completion: .value}"
    else:
        return "; write one object on each line, or a list of objects"
    return f"; {what}: write them as rows, for example with `jq -c '{program}' FILE.json > FILE.jsonl`"


def check_size(location: Path, layout: Layout) -> None:
    """Raise DataError if a file is too large for its rows to be put together in memory."""
    size = location.stat().st_size
    if layout.is_joined and size > JOINED_BYTES:
        raise DataError(
            f"{location}: {size / 1e9:.1f} GB; rows that are put together are held in memory, which is done for files "
            f"of up to {JOINED_BYTES / 1e9:.1f} GB; split it, each conversation within one file"
        )


def no_rows(location: Path, objections: Iterable[str]) -> str:
    """Return the message about a file none of whose records is a row."""
    reasons = ", ".join(sorted(set(objections)))
    return (
        f"{location}: none of its first {SNIFFED_RECORDS} records is a row ({reasons}); "
        'expected one object on each line, such as {"prompt": "...", "completion": "..."}, or a table with a header'
    )
