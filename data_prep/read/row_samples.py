"""What the columns of a sample of rows mean: by the source's `fields`, or by the kind of rows detected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import DataError
from data_prep.config import SourceConfig
from data_prep.files.bounded_io import RecordError
from data_prep.hints.row_hints import chat_hint, markup_hint, transcript_hint
from data_prep.rows.column_looks import Rows, columns_of, look_of, texts_in, values_of
from data_prep.rows.field_proposals import ask, conversation_hint, number_remark, written
from data_prep.rows.grouping import columns_read
from data_prep.rows.messages import CONTENT_KEYS, KNOWN_KEYS, MASK_KEY, NOT_MESSAGES, ROLE_KEYS, UNTOLD_MASK
from data_prep.rows.record_shapes import listed, name_list, turns_of_row, variables_of_row
from data_prep.rows.roles import known_role, line_to_write
from data_prep.rows.row_kinds import Kind, kinds_of, opened_safely
from data_prep.rows.row_layouts import THINKING, VARIABLES, Layout, layout_from
from data_prep.rows.speakers import messages_of, speakers, unknown_speakers
from data_prep.rows.value_paths import MISSING, matching, value_at

TOOLS = "tools"
TREES = "of each tree the conversation of the best ranked answers is read; `paths: all` reads every one"
SURE_ROWS, WRONG_SHARE = 10, 0.9  # of so many rows, such a share rejected: the columns are not what they seem
UNFIT = ("missing column", "not text", NOT_MESSAGES)


@dataclass(frozen=True)
class Decision:
    """How rows are read, what of them is not, and what a person is to know of it."""

    layout: Layout
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def decide(rows: Rows, source: SourceConfig, place: str) -> Decision:
    """Return how rows such as these are read.

    Raises DataError with the columns seen and the lines to write if that cannot be told.
    """
    kind = (
        Kind(named_layout(rows, source, place))
        if source.fields.given - {"rows"}
        else single_kind(rows, place, source.fields.rows)
    )
    layout = with_own(replace(kind.layout, tools=tools_column(rows, kind.layout)), source)
    check_own(rows, layout, source, place)
    check_speakers(rows, layout, place)
    check_flags(rows, layout, place)
    rejections = rejections_of(rows, layout)
    check_rejections(rejections, rows, layout, place)
    texts, others = unused_columns(rows, layout)
    notes = [
        kind.note,
        TREES if layout.parent_id and source.paths is None else "",
        *(tuple(conversation_hint(rows, layout)) or transcript_hint(rows, layout)),
        *chat_hint(rows, layout),
        *markup_hint(rows, layout),
        *told_rejections(rejections, len(rows)),
    ]
    idle = idle_roles(rows, layout)
    if idle:
        notes.append(f"roles: nobody in the rows looked at is called {', '.join(idle)}")
    if others:
        notes.append(f"other columns that are not used: {name_list(others)}")
    return Decision(layout, texts, tuple(filter(None, notes)))


def tools_column(rows: Rows, layout: Layout) -> str | None:
    """Return the column of the tools that a conversation has: one of that name, unless it holds something else."""
    if layout.tools or layout.text:
        return layout.tools
    held = [opened_safely(value) for value in values_of(rows, TOOLS)]
    return TOOLS if all(isinstance(value, list | Mapping) for value in held) else None


def check_own(rows: Rows, layout: Layout, source: SourceConfig, place: str) -> None:
    """Raise DataError if what a source says beside its `fields` would say nothing."""
    if layout.text and (source.system or source.roles):
        raise DataError(f"{place}: is running text, in which nobody speaks: `system` and `roles` say nothing here")
    held = (value_at(row, name) for row in rows for pattern in layout.messages for name in matching(pattern, row))
    if source.markers and not any(isinstance(value, str) for value in held):
        raise DataError(f"{place}: markers: {', '.join(layout.messages)} holds no text that they could be found in")


def single_kind(rows: Rows, place: str, inner: str | None = None) -> Kind:
    """Return the one kind that rows are. Raises DataError if there is none, or more than one.

    `inner` is where in each JSON value they lie.
    """
    found = kinds_of(rows)
    if len(found) == 1:
        return found[0]
    if found:
        lines = " or ".join(f"`{written(replace(kind.layout, rows=inner), rows)}`" for kind in found)
        raise DataError(
            f"{place}: its columns can be read in {len(found)} ways; columns seen: {name_list(columns_of(rows))}. "
            f"Write below this source in data.sources which is meant: {lines}"
        )
    raise DataError(f"{place}: cannot tell what its columns are; {ask(rows, inner)}")


def with_own(layout: Layout, source: SourceConfig) -> Layout:
    """Return a layout with what the source says beside its `fields`."""
    markers = tuple(
        (role, (marks,) if isinstance(marks, str) else tuple(marks)) for role, marks in source.markers.items()
    )
    return replace(
        layout,
        said=None if layout.text else source.system,
        roles=tuple(source.roles.items()),
        markers=markers or layout.markers,
        paths=source.paths or "best",
        rows=source.fields.rows or layout.rows,
    )


def named_layout(rows: Rows, source: SourceConfig, place: str) -> Layout:
    """Return the layout that a source's `fields` give. Raises DataError for what is in no row."""
    given = {name: value for name in source.fields.given if (value := getattr(source.fields, name)) is not None}
    if "prompt" in given or "completion" in given:
        given = {"prompt": "prompt", "completion": "completion", **given}
    several = {name for name, default in Layout.__dataclass_fields__.items() if default.default == ()}
    layout = layout_from(
        {name: (value,) if name in several and isinstance(value, str) else value for name, value in given.items()}
    )
    seen = columns_of(rows)
    absent = [path for path in layout.named() if not any(is_there(row, path, seen) for row in rows)]
    if absent:
        hint = (
            '; a text that is said in every row stands beside fields: `system: "..."`'
            if absent[0] in layout.system
            else ""
        )
        raise DataError(f"{place}: no columns {', '.join(absent)}; columns seen: {name_list(seen)}{hint}")
    check_keys(rows, layout, place)
    return layout


def is_there(row: Mapping[str, Any], path: str, seen: Sequence[str]) -> bool:
    """Return whether a row has any of the columns that a path or pattern names."""
    return any(value_at(row, name) is not MISSING for name in matching(path, seen))


def check_keys(rows: Rows, layout: Layout, place: str) -> None:
    """Raise DataError for a message's key that no message has."""
    if layout.is_joined:
        return
    keys = {key: None for message in messages_of(rows, layout) for key in message}
    wanted = [layout.role, layout.content, layout.user, layout.assistant, layout.train, layout.masked]
    absent = [key for key in wanted if key is not None and key not in keys]
    if absent:
        raise DataError(f"{place}: no message has {', '.join(absent)}; keys of its messages: {listed(keys) or 'none'}")
    has_role, has_content = (
        layout.role or set(ROLE_KEYS) & keys.keys(),
        layout.content or set(CONTENT_KEYS) & keys.keys(),
    )
    if keys and not layout.user and not (has_role and has_content):
        raise DataError(
            f"{place}: its messages have neither role and content nor from and value; keys: {listed(keys)}. "
            f"Write which key is what: `fields: {{messages: {', '.join(layout.messages)}, role: ???, content: ???}}`"
        )


def check_speakers(rows: Rows, layout: Layout, place: str) -> None:
    """Raise DataError with the line to write if nobody knows who somebody is."""
    own = layout.roles
    said, unknown = speakers(rows, layout), unknown_speakers(rows, layout)
    if unknown:
        known = [str(known_role(name, own)) for name in said]
        raise DataError(
            f"{place}: nobody knows who {listed(map(repr, unknown))} is; write below this source in data.sources, "
            f"if that is what they are, `{line_to_write(unknown, known)}` (user, assistant, system or tool)"
        )


def idle_roles(rows: Rows, layout: Layout) -> list[str]:
    """Return the names in a source's `roles` that nobody has."""
    said = {name.strip().casefold() for name in speakers(rows, layout)}
    return [name for name, _ in layout.roles if name.strip().casefold() not in said]


def check_flags(rows: Rows, layout: Layout, place: str) -> None:
    """Raise DataError if messages have a mask that does not tell whether it hides or trains."""
    if layout.train or layout.masked or layout.text:
        return
    if any(message.get(MASK_KEY) is not None for message in messages_of(rows, layout)):
        raise DataError(
            f"{place}: {UNTOLD_MASK}; write `masked: {MASK_KEY}` into this source's fields if 1 or true hides it, or "
            f"`train: {MASK_KEY}` if 1 or true trains it, beside `{written(layout, rows)}`"
        )


def unused_columns(rows: Rows, layout: Layout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the columns that are not read: those that hold text, and others."""
    names = columns_of(rows)
    used = {*columns_read(layout, tuple(names)), *(() if layout.text else (VARIABLES, THINKING))}
    looks = {name: look_of(name, values_of(rows, name)) for name in names if name not in used}
    texts = [name for name, look in looks.items() if look in ("text", "messages") or holds_prose(rows, name, look)]
    others = [name for name, look in looks.items() if name not in texts and look != "empty"]
    said, unsaid = unused_keys(rows, layout)
    return (*texts, *said), (*others, *unsaid)


def holds_prose(rows: Rows, name: str, look: str) -> bool:
    """Return whether a column of lists or objects holds texts of several words."""
    return look in ("list", "object") and any(
        len(text.split()) > 2 for value in values_of(rows, name) for text in texts_in(value)
    )


def unused_keys(rows: Rows, layout: Layout) -> tuple[list[str], list[str]]:
    """Return the keys of messages that are not read: those that hold text, and others."""
    if layout.is_joined or not layout.messages:
        return [], []
    used = {layout.role, layout.content, layout.user, layout.assistant, layout.train, layout.masked}
    used |= set() if layout.user else KNOWN_KEYS
    found: dict[str, list[Any]] = {}
    for message in messages_of(rows, layout):
        for key, value in message.items():
            if key not in used and value not in (None, ""):
                found.setdefault(key, []).append(value)
    column = layout.messages[0]
    keys: dict[bool, list[str]] = {True: [], False: []}
    for key, values in found.items():
        keys[look_of(key, values) in ("text", "messages")].append(f"{column}[].{key}")
    return keys[True], keys[False]


def rejections_of(rows: Rows, layout: Layout) -> Mapping[str, int]:
    """Return what is wrong with rows of the sample, and of how many: nothing is known of rows that are joined."""
    reasons: Counter[str] = Counter()
    for row in () if layout.is_whole else rows:
        try:
            turns_of_row(row, layout)
            variables_of_row(row, layout)
        except RecordError as objection:
            reasons[str(objection)] += 1
    return reasons


def check_rejections(reasons: Mapping[str, int], rows: Rows, layout: Layout, place: str) -> None:
    """Raise DataError if nearly all rows do not fit the layout: then it is wrong, not they."""
    unfit = {reason: count for reason, count in reasons.items() if reason in UNFIT}
    if len(rows) < SURE_ROWS or sum(unfit.values()) < WRONG_SHARE * len(rows):
        return
    names = columns_of(rows)
    read = columns_read(layout, tuple(names))
    told = ", ".join(f"{reason}: {count}" for reason, count in unfit.items())
    raise DataError(
        f"{place}: {sum(unfit.values())} of the {len(rows)} rows looked at would be rejected ({told}), if "
        f"{name_list(read)} is read; columns seen: {name_list(names)}{number_remark(rows)}. Fix the rows, or write "
        "below this source in data.sources which columns are meant: `fields: {...}` (docs/rows.md)"
    )


def told_rejections(reasons: Mapping[str, int], count: int) -> Iterator[str]:
    """Yield what is wrong with rows of a sample of `count`, if many have it."""
    for reason, rejected in reasons.items():
        if rejected >= max(2, count // 20):
            yield f"{rejected} of the {count} rows looked at are rejected: {reason}"
