"""Messages and YAML that propose `fields` for unknown rows, with placeholders where the user has to choose."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from data_prep.rows.column_looks import Rows, columns_of, looks_opened, values_of
from data_prep.rows.field_guesses import Proposal, marked_column, propose, rows_at
from data_prep.rows.fields import PLACEHOLDER
from data_prep.rows.record_shapes import cut, listed, name_list
from data_prep.rows.roles import quoted
from data_prep.rows.row_kinds import ANSWERS, ONLY_TOGETHER, QUESTIONS, kinds_of, opened_safely
from data_prep.rows.row_layouts import Layout, as_fields, layout_from
from data_prep.rows.speakers import unknown_speakers
from data_prep.rows.turn_markers import Markers
from data_prep.rows.value_paths import MISSING, value_at

UNDERSTOOD = (
    "text; prompt, instruction, question, query or problem with completion, output, response, answer or solution; "
    "messages, conversations or conversation; chosen"
)
LINE_NAME = 80  # characters of a column's name in a line to copy; longer ones are cells, not names


def written(layout: Layout, rows: Rows) -> str:
    """Return a layout as one line of YAML `fields`."""
    seen = columns_of(rows)
    has_tools = layout.tools is not None and any(value_at(row, layout.tools) is not MISSING for row in rows)
    fields = as_fields(layout if has_tools else replace(layout, tools=None), seen)
    return joined([(name, value, "") for name, value in fields.items()], layout.markers)


def joined(proposal: Proposal, markers: Markers = ()) -> str:
    """Return a proposal on one line."""
    fields = ", ".join(f"{name}: {value_text(short_value(value))}" for name, value, _ in proposal)
    marks = (
        f", markers: {{{', '.join(f'{role_text(role)}: {value_text(list(marks))}' for role, marks in markers)}}}"
        if markers
        else ""
    )
    return f"fields: {{{fields}}}{marks}"


def short_value(value: Any) -> Any:
    """Return a column's name, or a list of them, name_list for a message."""
    if isinstance(value, list):
        return [short_value(item) for item in value]
    return cut(value, LINE_NAME) if isinstance(value, str) and len(value) > LINE_NAME else value


def role_text(role: str) -> str:
    return f'"{role}"' if role == PLACEHOLDER else role  # YAML allows no key that begins with ? in braces


def value_text(value: Any) -> str:
    """Return a column's name, or a list of them, as YAML."""
    if isinstance(value, list):
        return value_text(value[0]) if len(value) == 1 else f"[{', '.join(map(value_text, value))}]"
    if value == PLACEHOLDER:
        return PLACEHOLDER
    return quoted_path(value)


def quoted_path(name: str) -> str:
    return quoted(name, "._")


def ask(rows: Rows, inner: str | None = None) -> str:
    """Return the message for rows of unknown kind: the columns, and the `fields` to write."""
    proposal, markers = propose(rows, inner)
    told = f"{remarks(proposal)}{printed_remark(rows)}{number_remark(rows)}"
    return (
        f"columns seen: {name_list(columns_of(rows))}. Recognized without settings: {UNDERSTOOD} (docs/rows.md). For "
        f"other columns write below this source in data.sources, for example: `{joined(proposal, markers)}`{told}"
    )


def printed_remark(rows: Rows) -> str:
    """Return a remark on columns whose lists were printed instead of written as JSON."""
    printed = [name for name in columns_of(rows) if is_printed(values_of(rows, name))]
    return f"; {listed(printed)} holds printed lists, which cannot be parsed: write JSON" if printed else ""


def number_remark(rows: Rows) -> str:
    """Return a remark on questions, answers and texts that are numbers: they are not converted by themselves."""
    known = {*QUESTIONS, *ANSWERS, "text", *(name for pair in ONLY_TOGETHER for name in pair)}
    told = ""
    for name in columns_of(rows):
        held = values_of(rows, name) if name.casefold() in known else []
        numbers = [value for value in held if isinstance(value, int | float)]
        if numbers:
            what = "true and false" if all(isinstance(value, bool) for value in numbers) else "numbers"
            shown = json.dumps(numbers[0])
            told += (
                f"; {name} holds {what} in {len(numbers)} of {len(rows)} rows, and only texts are trained: write them "
                f'as texts, "{shown}" for {shown}'
            )
    return told


def is_printed(values: Sequence[Any]) -> bool:
    """Return whether a column's texts are lists as numpy prints them, without commas."""
    texts = [value for value in values if isinstance(value, str) and looks_opened(value)]
    return bool(texts) and all(isinstance(opened_safely(text), str) for text in texts)


def remarks(proposal: Proposal) -> str:
    """Return a proposal's comments on one line."""
    told = [f"{cut(name)}: {comment}" for name, value, comment in proposal if comment]
    return f" ({'; '.join(told)})" if told else ""


def conversation_hint(rows: Rows, layout: Layout) -> Iterator[str]:
    """Yield a hint on what to write if running texts look like conversations."""
    found = marked_column(rows, [name for name in layout.text if name in columns_of(rows)]) if layout.text else None
    if found is not None:
        lines = joined([*rows_at(layout.rows), ("messages", found[0], "")], found[1])
        yield (
            f"the texts in {cut(found[0])} look like conversations and are trained in full; to train only the answers, "
            f"write `{lines}`"
        )


def proposal_lines(rows: Rows, inner: str | None = None) -> list[str]:
    """Return the YAML that `shardline init` writes below a source whose rows are of no known kind."""
    found = kinds_of(rows)
    if len(found) > 1:
        ways = [f"#   {written(replace(kind.layout, rows=inner), rows)}" for kind in found]
        told = f"# its columns can be read in {len(found)} ways; replace `fields` with one of these lines:"
        return [told, *ways, "fields:", f"  messages: {PLACEHOLDER}"]
    proposal, markers = (rows_at(inner), ()) if found else propose(rows, inner)
    lines = ["fields:"] if proposal else []
    for name, value, comment in proposal:
        line = f"  {name}: {value_text(value)}"
        lines.append(f"{line:<32} # {comment}" if comment else line)
    if markers:
        marks = ", ".join(
            f"{role_text(role)}: {json.dumps(list(marks), ensure_ascii=False)}" for role, marks in markers
        )
        unsure = f"  # write the role, or remove the marker: {PLACEHOLDER}" if PLACEHOLDER in marks else ""
        lines.append(f"markers: {{{marks}}}{unsure}")
    layout = found[0].layout if found else layout_of(proposal)
    unknown = unknown_speakers(rows, layout) if layout else []
    if unknown:
        lines += [
            "roles:",
            *(f"  {quoted(name)}: {PLACEHOLDER}  # user, assistant, system or tool" for name in unknown),
        ]
    return lines


def layout_of(proposal: Proposal) -> Layout | None:
    """Return the layout of a proposal for messages that has no placeholder; else None."""
    given = {name: value for name, value, _ in proposal}
    if PLACEHOLDER in given.values() or not {"messages", "group_by"} & given.keys():
        return None
    return layout_from({name: (value,) if name == "messages" else value for name, value in given.items()})
