"""Convert a row's columns to turns, as a layout maps them."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_prep.documents import Turn
from data_prep.files.bounded_io import RecordError
from data_prep.rows.column_looks import is_gap
from data_prep.rows.messages import NEEDS_MEDIA, NOT_MESSAGES, ROLE_KEYS, turns_of_message
from data_prep.rows.row_layouts import MEDIA, THINKING, VARIABLES, Layout, Names
from data_prep.rows.turn_markers import marked_turns
from data_prep.rows.value_paths import MISSING, matching, opened, value_at

ROWS = "rows"  # the key under which `grouping` stores the rows of a conversation
SAID_ROLES = ("user", "assistant")
BETWEEN = "\n\n"  # joins the texts of several columns in one turn
NAME_LENGTH, NAMES = 40, 12  # limits for column names in messages: characters of one, and how many
NO_VARIABLES: Mapping[str, Any] = {}


def turns_of_row(row: Mapping[str, Any], layout: Layout) -> tuple[Turn, ...]:
    """Return the turns of a row. Raises RecordError."""
    if any(row.get(name) for name in MEDIA) and any(row.get(name) for name in MEDIA if name not in layout.columns(row)):
        raise RecordError(NEEDS_MEDIA)
    if layout.text:
        return (Turn("text", BETWEEN.join(texts_at(row, layout.text))),)
    if layout.label is not None and not wanted(value_at(row, layout.label)):
        raise RecordError("not wanted, by its label")
    if layout.prompt:
        turns = pair_of(row, layout)
    else:
        turns = with_context(conversation_of(row, layout), optional_texts(row, layout.context))
    return with_system(turns, BETWEEN.join(optional_texts(row, layout.system)), layout.said)


def variables_of_row(row: Mapping[str, Any], layout: Layout) -> Mapping[str, Any]:
    """Return the chat template's inputs other than the messages. Raises RecordError."""
    found: dict[str, Any] = {}
    if settings := in_form(row.get(VARIABLES), Mapping, f"{VARIABLES} is not a JSON object"):
        found |= settings
    thinks = row.get(THINKING)
    if thinks is not None:
        found[THINKING] = truth(thinks, f"{THINKING} is neither true nor false")
    if tools := in_form(value_at(row, layout.tools) if layout.tools else None, list | Mapping, "tools are not JSON"):
        found["tools"] = [as_function(tool) for tool in (tools if isinstance(tools, list) else [tools])]
    return found or NO_VARIABLES


def in_form(value: Any, form: Any, objection: str) -> Any:
    """Return a value, parsed if it is JSON text, that must be of type `form`; None if empty. Raises RecordError."""
    if isinstance(value, str):
        value = opened(value) if value.strip() else None
    if value is None or value is MISSING or value in ([], {}):
        return None
    if not isinstance(value, form):
        raise RecordError(objection)
    return value


def as_function(tool: Any) -> Any:
    """Return a tool in OpenAI's form, as servers pass it to templates."""
    if isinstance(tool, str):
        tool = opened(tool)
    if not isinstance(tool, Mapping):
        raise RecordError("tools are not JSON")
    return tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool}


def truth(value: Any, objection: str) -> bool:
    """Return a value as a bool: true, false, 1, 0 or their text. Raises RecordError for anything else."""
    if isinstance(value, str):
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise RecordError(objection)
    return bool(value)


def wanted(label: Any) -> bool:
    return truth(label, "label is neither true nor false")


def pair_of(row: Mapping[str, Any], layout: Layout) -> tuple[Turn, ...]:
    """Return a question and its answer, after the earlier turns. Raises RecordError."""
    asked = required_texts(row, layout.prompt)
    answer = BETWEEN.join(required_texts(row, layout.completion))
    asked = [*optional_texts(row, layout.context), *asked, *optional_texts(row, layout.input)]
    question = BETWEEN.join(text for text in asked if text)
    before = conversation_turns([said], layout) if (said := history_at(row, layout.history)) else ()
    return *before, Turn("user", question), Turn("assistant", answer)


def history_at(row: Mapping[str, Any], path: str | None) -> Any:
    """Return the value at an optional path; None if it is empty."""
    value = None if path is None else value_at(row, path)
    if value is MISSING or value in (None, []) or (isinstance(value, str) and value.strip() in ("", "[]")):
        return None
    return value


def required_texts(row: Mapping[str, Any], names: Names) -> list[str]:
    """Return the texts of the columns that a row has. Raises RecordError if it has none of them."""
    found = texts_at(row, names)
    return [text for text in found if text] or found[:1]


def texts_at(row: Mapping[str, Any], names: Names) -> list[str]:
    """Return the texts of the columns that a row has; the columns of a pattern are joined, one per line.

    Raises RecordError if it has none of them.
    """
    found = []
    for pattern in names:
        values = [value_at(row, name) for name in matching(pattern, row)]
        there = [value for value in values if value is not MISSING and (value is not None or len(names) == 1)]
        if not all(isinstance(value, str) for value in there):
            raise RecordError("not text")
        found += ["\n".join(there)] if there else []
    if not found:
        raise RecordError("missing column")
    return found


def optional_texts(row: Mapping[str, Any], names: Names) -> list[str]:
    """Return the texts of the columns that a row has and that are not blank. Raises RecordError."""
    values = [(name, value_at(row, name)) for name in names]
    there = [text_beside(name, value) for name, value in values if value is not MISSING and not is_gap(value)]
    return [text for text in there if text.strip()]


def text_beside(name: str, value: Any) -> str:
    """Return an optional value as text: several texts joined by blank lines, a number as it is written.

    Raises RecordError.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return BETWEEN.join(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise RecordError(f"not text in {name}")


def conversation_of(row: Mapping[str, Any], layout: Layout) -> tuple[Turn, ...]:
    """Return the turns of a row, or of the rows of one conversation. Raises RecordError."""
    if layout.is_joined:
        turns = tuple(turn for message in row[ROWS] for turn in turns_of_message(message, layout))
    else:
        values = [value_at(row, name) for pattern in layout.messages for name in matching(pattern, row)]
        if not values or any(value is MISSING for value in values):
            raise RecordError("missing column")
        turns = tuple(conversation_turns(values, layout))
    if not turns:
        raise RecordError("empty")
    return turns


def conversation_turns(values: Sequence[Any], layout: Layout) -> Iterator[Turn]:
    """Yield the turns of lists of messages, of single messages, and of texts that two speakers say in turn.

    A text after a conversation answers it; a text on its own contains turn markers, or is a list as JSON.
    """
    if layout.markers and all(isinstance(value, str) for value in values):
        yield from marked_turns("".join(values), layout.markers)
        return
    check_gaps(values)
    last = "assistant"
    for value in values:
        if isinstance(value, str):
            value = opened_conversation(value, is_alone=len(values) == 1)
        for turn in turns_of_item(value, last, layout):
            yield turn
            last = turn.role
        if not isinstance(value, str):
            last = "user"


def check_gaps(values: Sequence[Any]) -> None:
    """Raise RecordError if a text other than the last is empty: the next one's speaker would be unknown."""
    are_blank = [isinstance(value, str) and not value.strip() for value in values]
    if any(before and not after for before, after in itertools.pairwise(are_blank)):
        raise RecordError("an empty turn between others")


def opened_conversation(text: str, *, is_alone: bool) -> Any:
    """Parse a text that is JSON; unless it is the only column, accept only what is clearly messages."""
    value = opened(text)
    if is_alone:
        if isinstance(value, str):
            raise RecordError(NOT_MESSAGES)
        return value
    items = value if isinstance(value, list) else [value]
    is_said = all(isinstance(item, Mapping) and not item.keys().isdisjoint(ROLE_KEYS) for item in items)
    return value if items and is_said else text


def turns_of_item(value: Any, last: str, layout: Layout) -> Iterator[Turn]:
    """Yield the turns of a text, a message, a question with its answer, or a list of these. Raises RecordError."""
    if isinstance(value, str):
        if value.strip():
            yield Turn(SAID_ROLES[last == "user"], value)
    elif isinstance(value, Mapping):
        yield from turns_of_message(value, layout)
    elif isinstance(value, list):
        check_gaps(value)
        for item in value:
            is_exchange = isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item)
            if isinstance(item, list) and not is_exchange:
                raise RecordError(NOT_MESSAGES)
            exchange = (Turn(*said) for said in zip(SAID_ROLES, item, strict=True)) if is_exchange else None
            for turn in exchange or turns_of_item(item, last, layout):
                yield turn
                last = turn.role
    else:
        raise RecordError(NOT_MESSAGES)


def with_system(turns: tuple[Turn, ...], told: str, said: str | None) -> tuple[Turn, ...]:
    """Return a conversation with its row's system text in front; `said` is the source's default.

    If the conversation has a system turn and its row has another text, both are kept.
    """
    has_own = bool(turns) and turns[0].role == "system"
    if not told and not has_own:
        told = said or ""
    if not told or (has_own and turns[0].text.strip() == told.strip()):
        return turns
    if has_own:
        return replace(turns[0], text=f"{told}{BETWEEN}{turns[0].text}"), *turns[1:]
    return Turn("system", told), *turns


def with_context(turns: tuple[Turn, ...], context: Sequence[str]) -> tuple[Turn, ...]:
    """Return a conversation with the context before its first question. Raises RecordError if there is none."""
    if not context:
        return turns
    first = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        raise RecordError("a context without a question")
    asked = replace(turns[first], text=BETWEEN.join([*context, turns[first].text]))
    return *turns[:first], asked, *turns[first + 1 :]


def folded(turns: Sequence[Turn]) -> tuple[Turn, Turn]:
    """Return a pair for a model without a chat template: everything before the answer is the prompt."""
    *asked, answer = turns
    return Turn("user", BETWEEN.join(turn.text for turn in asked if turn.text)), answer


def name_list(names: Iterable[str]) -> str:
    """Return column names for a message: names that differ only in their number are one entry, with a count."""
    families = Counter(re.sub(r"\d+$", "*", name) for name in names)
    return listed(
        cut(name) if count == 1 and "*" not in name else f"{cut(name)} ({count})" for name, count in families.items()
    )


def listed(names: Iterable[str]) -> str:
    """Return the first few names for a message, and how many more there are."""
    found = list(names)
    more = [f"... ({len(found) - NAMES} more)"] if len(found) > NAMES else []
    return ", ".join([*map(cut, found[:NAMES]), *more])


def cut(name: str, length: int = NAME_LENGTH) -> str:
    """Return a name for a message: on one line, name_list, and never empty."""
    plain = " ".join(name[: 4 * length].split())
    if not plain:
        return "(unnamed)"
    return plain if len(plain) <= length + 10 else f"{plain[:length]}..."
