"""What a person may want to write for rows that are not understood: the `fields`, open where a person has to choose."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_prep.rows.column_looks import Rows, columns_of, look_of, looks_opened, texts_in, values_of
from data_prep.rows.fields import PLACEHOLDER
from data_prep.rows.record_shapes import cut, listed, name_list
from data_prep.rows.roles import known_role, quoted
from data_prep.rows.row_kinds import (
    ANSWERS,
    CHOICES,
    NUMBERED,
    ONLY_TOGETHER,
    QUESTIONS,
    SYSTEMS,
    kinds_of,
    opened_safely,
)
from data_prep.rows.row_layouts import Layout, as_fields, layout_from
from data_prep.rows.speakers import unknown_speakers
from data_prep.rows.turn_markers import STYLES, Markers, has_marks, with_shown
from data_prep.rows.value_paths import MISSING, value_at

UNDERSTOOD = (
    "text; prompt, instruction, question, query or problem with completion, output, response, answer or solution; "
    "messages, conversations or conversation; chosen"
)
LINE_NAME = 80  # characters of a column's name in a line to copy: a longer one is no name but a cell
ROLE_LIKE, CONTENT_LIKE = (
    ("role", "from", "speaker", "author", "sender"),
    ("content", "value", "text", "utterance", "message", "body"),
)

WORSE = re.compile(  # what nobody wants learnt
    r"reject|incorrect|non.?preferred|dis.?preferred|wrong|distractor|negative|loser", re.IGNORECASE
)
INSIDE = "each row is a message; such are put together in files of rows only: write these rows as JSON lines"
SAID_LOOKS = ("text", "label", "id", "empty")  # of short texts among longer ones
Proposal = list[tuple[str, Any, str]]  # key, value, comment


def written(layout: Layout, rows: Rows) -> str:
    """Return the lines of YAML, in one, by which rows are read with a layout."""
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
    """Return a column's name, or a list of them, as a message shows it."""
    if isinstance(value, list):
        return [short_value(item) for item in value]
    return cut(value, LINE_NAME) if isinstance(value, str) and len(value) > LINE_NAME else value


def role_text(role: str) -> str:
    return f'"{role}"' if role == PLACEHOLDER else role  # YAML takes no key that begins with ? in braces


def value_text(value: Any) -> str:
    """Return a column's name, or a list of them, as YAML."""
    if isinstance(value, list):
        return value_text(value[0]) if len(value) == 1 else f"[{', '.join(map(value_text, value))}]"
    if value == PLACEHOLDER:
        return PLACEHOLDER
    return json.dumps(value, ensure_ascii=False) if "\n" in value or "*" in value else quoted_path(value)


def quoted_path(name: str) -> str:
    plain = name.replace(".", "").replace("_", "")
    return name if plain.isalnum() and not plain[:1].isdigit() else json.dumps(name, ensure_ascii=False)


def ask(rows: Rows, inner: str | None = None) -> str:
    """Return what a person is told of rows that are not understood."""
    proposal, markers = propose(rows, inner)
    told = f"{remarks(proposal)}{printed_remark(rows)}{number_remark(rows)}"
    return (
        f"columns seen: {name_list(columns_of(rows))}. Understood by themselves are {UNDERSTOOD} (docs/rows.md). For "
        f"others write below this source in data.sources, for example: `{joined(proposal, markers)}`{told}"
    )


def printed_remark(rows: Rows) -> str:
    """Return what is said of columns that were written as a program prints them."""
    printed = [name for name in columns_of(rows) if is_printed(values_of(rows, name))]
    return f"; {listed(printed)} holds printed lists, which cannot be read back: write JSON" if printed else ""


def number_remark(rows: Rows) -> str:
    """Return what is said of questions, answers and texts that are numbers: how to spell one, only its owner knows."""
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
    """Tell whether a column's texts are lists as numpy prints them, without commas."""
    texts = [value for value in values if isinstance(value, str) and looks_opened(value)]
    return bool(texts) and all(isinstance(opened_safely(text), str) for text in texts)


def remarks(proposal: Proposal) -> str:
    """Return a proposal's comments on one line."""
    told = [f"{cut(name)}: {comment}" for name, value, comment in proposal if comment]
    return f" ({'; '.join(told)})" if told else ""


def propose(rows: Rows, inner: str | None = None) -> tuple[Proposal, Markers]:
    """Return `fields` for rows, with placeholders where it is not sure, and markers that go with them.

    `inner` is where in each JSON value the rows lie.
    An id, an address, a label or a rejected answer is never proposed for what is trained.
    """
    lie = rows_at(inner)
    looks = {name: look_of(name, values_of(rows, name)) for name in columns_of(rows) if not WORSE.search(name)}
    texts = [name for name, look in looks.items() if look == "text"]
    marked = marked_column(rows, texts)
    if marked is not None:
        told = [("system", name, "") for name in texts if name in SYSTEMS and name != marked[0]]
        return [*lie, ("messages", marked[0], ""), *told[:1]], marked[1]
    told_apart = message_rows(rows, looks)
    if told_apart and lie:
        return [*lie, ("text", PLACEHOLDER, INSIDE)], ()
    for guess in (told_apart, nested_messages(rows, looks, texts), numbered_columns(looks)):
        if guess:
            return [*lie, *guess], ()
    return [*lie, *pair_or_text(rows, looks, texts)], ()


def rows_at(inner: str | None) -> Proposal:
    return [] if inner is None else [("rows", inner, "")]


def pair_or_text(rows: Rows, looks: Mapping[str, str], texts: Sequence[str]) -> Proposal:
    """Return a question with its answer, or one text, out of the columns that look like text."""
    nested = [name for name, look in looks.items() if look in ("list", "messages", "object")]
    choices = [*texts, *(path for name in nested for path in inside(rows, name))]
    asked = [name for name in texts if name.casefold() in QUESTIONS]
    if len(choices) == 1 and not asked:
        return one_text(choices[0], [path for name in nested for path in places(rows, name)])
    if not choices:
        return [("text", PLACEHOLDER, f"no column looks like text; columns: {listed(looks) or 'none'}")]
    answered = [name for name in texts if name.casefold() in ANSWERS]
    is_whole = not any(name.casefold() in CHOICES for name in columns_of(rows))  # else the question asks for nothing
    prompt = asked[0] if is_whole and len(asked) == 1 and len(answered) <= 1 else PLACEHOLDER
    completion = answered[0] if len(answered) == 1 and len(asked) <= 1 else PLACEHOLDER
    others = [name for name in dict.fromkeys([*choices, *looks]) if name not in (prompt, completion)]
    one_of = f"one of: {listed(others)}"
    return [
        ("prompt", prompt, one_of if prompt == PLACEHOLDER else ""),
        ("completion", completion, one_of if completion == PLACEHOLDER else ""),
    ]


def one_text(name: str, held: Sequence[str]) -> Proposal:
    """Return the one running text, left open if other texts lie where a column `held` them."""
    others = [path for path in held if path != name]
    answers = f"or, if it answers something: prompt: {PLACEHOLDER}, completion: {PLACEHOLDER if others else name}"
    if others:
        return [("text", PLACEHOLDER, f"one of: {', '.join([name, *others])}; {answers}")]
    return [("text", name, answers)]


def inside(rows: Rows, name: str) -> list[str]:
    """Return the paths to texts of several words right inside a column of lists or objects."""
    found = places(rows, name).items()
    return [path for path, held in found if any(isinstance(text, str) and len(text.split()) > 2 for text in held)]


def places(rows: Rows, name: str) -> dict[str, list[Any]]:
    """Return what lies right inside a column of lists or objects, by its path, where it says something."""
    paths: dict[str, list[Any]] = {}
    for value in values_of(rows, name):
        held = opened_safely(value)
        inner = held.items() if isinstance(held, dict) else enumerate(held[:1]) if isinstance(held, list) else ()
        for key, item in inner:
            if says_something(item) and not WORSE.search(str(key)):
                paths.setdefault(f"{name}[{key}]" if isinstance(key, int) else f"{name}.{key}", []).append(item)
    return paths


def says_something(value: Any) -> bool:
    """Tell whether a value has a text of several words in it, or is a list of objects with texts, if only of a word."""
    texts = list(texts_in(value))
    are_objects = isinstance(value, list) and any(isinstance(item, dict) for item in value)
    return any(len(text.split()) > 1 for text in texts) or (are_objects and bool(texts))


def numbered_columns(looks: Mapping[str, str]) -> Proposal:
    """Return the columns that differ in their number only as a dialogue, if they hold texts."""
    bases = [name.rstrip("0123456789") for name, look in looks.items() if name[-1:].isdigit() and look in SAID_LOOKS]
    often = max(bases, key=bases.count, default="")
    are_texts = any(look == "text" and name.rstrip("0123456789") == often for name, look in looks.items())
    return [("messages", f"{often}*", "")] if are_texts and often and bases.count(often) >= NUMBERED else []


def nested_messages(rows: Rows, looks: Mapping[str, str], texts: Sequence[str]) -> Proposal:
    """Return a column of lists of objects, or of texts, as a conversation, where it is plain or all that there is."""
    nested = [name for name, look in looks.items() if look in ("list", "messages", "object") and name != "tools"]
    are_many = sum(bool(places(rows, name)) for name in nested) > 1  # then one of them alone is not all that is said
    for name in nested:
        held = (opened_safely(value) for value in values_of(rows, name))
        items = [item for value in held if isinstance(value, list) for item in value]
        if items and all(isinstance(item, dict) for item in items):
            keys = list(dict.fromkeys(key for item in items for key in item))
            if not texts or set(keys) & set(ROLE_LIKE):
                return [
                    ("messages", name, ""),
                    ("role", *chosen_key(keys, ROLE_LIKE, items)),
                    ("content", *chosen_key(keys, CONTENT_LIKE, items)),
                ]
        elif not texts and not are_many and len(items) > 1 and all(map(is_said, items)):
            return [("messages", name, "texts that two people say in turn, the first of them the user")]
    return []


def is_said(item: Any) -> bool:
    return isinstance(item, str) and len(item.split()) > 2


def chosen_key(keys: Sequence[str], like: Sequence[str], items: Sequence[Any]) -> tuple[str, str]:
    found = [key for key in keys if key in like and any(isinstance(item.get(key), str | int) for item in items)]
    return (found[0], "") if len(found) == 1 else (PLACEHOLDER, f"one of: {listed(keys)}")


def message_rows(rows: Rows, looks: Mapping[str, str]) -> Proposal:
    """Return rows that are each one message as conversations, if a column tells who speaks."""
    speakers = [name for name in looks if name.casefold() in ROLE_LIKE and are_roles(values_of(rows, name))]
    said = [name for name in looks if name.casefold() in CONTENT_LIKE and looks[name] in ("text", "label", "id")]
    groups = [
        name
        for name in looks
        if name.casefold().replace("_", "")
        in ("conversationid", "dialogid", "dialogueid", "threadid", "chatid", "sessionid")
    ]
    if not speakers or not said:
        return []
    group = groups[0] if len(groups) == 1 else PLACEHOLDER
    one_of = f"the rows of one conversation have the same in it; one of: {listed(looks)}"
    return [
        ("group_by", group, one_of if group == PLACEHOLDER else ""),
        ("role", speakers[0], ""),
        ("content", said[0], ""),
    ]


def are_roles(values: Sequence[Any]) -> bool:
    names = {value for value in values if isinstance(value, str)}
    return bool(names) and all(known_role(name) for name in names)


def marked_column(rows: Rows, texts: Sequence[str]) -> tuple[str, Markers] | None:
    """Return a column whose texts have their turns marked, and how."""
    for name in texts:
        values = [str(value) for value in values_of(rows, name)]
        for style in STYLES:
            if values and all(has_marks(value, style) for value in values):
                return name, with_shown(style, values)
    return None


def conversation_hint(rows: Rows, layout: Layout) -> Iterator[str]:
    """Yield what to write if running texts look like conversations."""
    found = marked_column(rows, [name for name in layout.text if name in columns_of(rows)]) if layout.text else None
    if found is not None:
        lines = joined([*rows_at(layout.rows), ("messages", found[0], "")], found[1])
        yield (
            f"the texts in {cut(found[0])} look like conversations and are trained whole; to train the answers only, "
            f"write `{lines}`"
        )


def proposal_lines(rows: Rows, inner: str | None = None) -> list[str]:
    """Return the YAML that `shardline init` writes below a source whose rows are not understood by themselves."""
    found = kinds_of(rows)
    if len(found) > 1:
        ways = [f"#   {written(replace(kind.layout, rows=inner), rows)}" for kind in found]
        told = f"# its columns can be read in {len(found)} ways; put one of these lines in the place of `fields`:"
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
        unsure = f"  # write who speaks, or leave it out: {PLACEHOLDER}" if PLACEHOLDER in marks else ""
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
    """Return the layout of a proposal about messages in which nothing is open."""
    given = {name: value for name, value, _ in proposal}
    if PLACEHOLDER in given.values() or not {"messages", "group_by"} & given.keys():
        return None
    return layout_from({name: (value,) if name == "messages" else value for name, value in given.items()})
