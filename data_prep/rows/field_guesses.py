"""Guess which columns of unknown rows hold a text, a pair or a conversation; what is unsure stays a placeholder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_prep.rows.column_looks import Rows, columns_of, look_of, texts_in, values_of
from data_prep.rows.fields import PLACEHOLDER
from data_prep.rows.record_shapes import listed
from data_prep.rows.roles import known_role
from data_prep.rows.row_kinds import ANSWERS, CHOICES, NUMBERED, QUESTIONS, SYSTEMS, opened_safely
from data_prep.rows.turn_markers import STYLES, Markers, has_marks, with_shown

Proposal = list[tuple[str, Any, str]]  # key, value, comment
ROLE_LIKE = ("role", "from", "speaker", "author", "sender")
CONTENT_LIKE = ("content", "value", "text", "utterance", "message", "body")
WORSE = re.compile(  # answers that must not be trained
    r"reject|incorrect|non.?preferred|dis.?preferred|wrong|distractor|negative|loser", re.IGNORECASE
)
INSIDE = "each row is a message; messages are grouped only across the rows of a file: write these rows as JSON lines"
TOO_DEEP = "its texts lie in lists inside of lists, which no field can name"
FEW_ROWS = 20  # in which texts are looked for
SAID_LOOKS = ("text", "label", "id", "empty")  # looks of the shorter texts among numbered columns


def propose(rows: Rows, inner: str | None = None) -> tuple[Proposal, Markers]:
    """Return proposed `fields` for rows, with placeholders where the choice is not clear, and their markers.

    `inner` is the path of the rows inside each JSON value. Ids, addresses, labels and rejected answers are never
    proposed as trained columns.
    """
    prefix = rows_at(inner)
    looks = {name: look_of(name, values_of(rows, name)) for name in columns_of(rows) if not WORSE.search(name)}
    texts = [name for name, look in looks.items() if look == "text"]
    marked = marked_column(rows, texts)
    if marked is not None:
        system = [("system", name, "") for name in texts if name in SYSTEMS and name != marked[0]]
        return [*prefix, ("messages", marked[0], ""), *system[:1]], marked[1]
    per_row = message_rows(rows, looks)
    if per_row and prefix:
        return [*prefix, ("text", PLACEHOLDER, INSIDE)], ()
    for guess in (per_row, nested_messages(rows, looks, texts), numbered_columns(looks)):
        if guess:
            return [*prefix, *guess], ()
    return [*prefix, *pair_or_text(rows, looks, texts)], ()


def rows_at(inner: str | None) -> Proposal:
    return [] if inner is None else [("rows", inner, "")]


def pair_or_text(rows: Rows, looks: Mapping[str, str], texts: Sequence[str]) -> Proposal:
    """Propose a question with its answer, or one text, from the columns that look like text."""
    nested = [name for name, look in looks.items() if look in ("list", "messages", "object")]
    choices = [*texts, *(path for name in nested for path in text_paths(rows, name))]
    asked = [name for name in texts if name.casefold() in QUESTIONS]
    if len(choices) == 1 and not asked:
        return one_text(choices[0], [path for name in nested for path in nested_values(rows, name)])
    if not choices:
        deep = deep_texts(rows)
        why = (
            f"{TOO_DEEP}: {listed(deep)}" if deep else f"no column looks like text; columns: {listed(looks) or 'none'}"
        )
        return [("text", PLACEHOLDER, why)]
    answered = [name for name in texts if name.casefold() in ANSWERS]
    is_whole = not any(
        name.casefold() in CHOICES for name in columns_of(rows)
    )  # without its choices, the question is incomplete
    prompt = asked[0] if is_whole and len(asked) == 1 and len(answered) <= 1 else PLACEHOLDER
    completion = answered[0] if len(answered) == 1 and len(asked) <= 1 else PLACEHOLDER
    others = [name for name in dict.fromkeys([*choices, *looks]) if name not in (prompt, completion)]
    one_of = f"one of: {listed(others)}"
    return [
        ("prompt", prompt, one_of if prompt == PLACEHOLDER else ""),
        ("completion", completion, one_of if completion == PLACEHOLDER else ""),
    ]


def one_text(name: str, held: Sequence[str]) -> Proposal:
    """Propose one column as running text; a placeholder if there are other texts among the nested paths `held`."""
    others = [path for path in held if path != name]
    answers = f"or, if it answers something: prompt: {PLACEHOLDER}, completion: {PLACEHOLDER if others else name}"
    if others:
        return [("text", PLACEHOLDER, f"one of: {', '.join([name, *others])}; {answers}")]
    return [("text", name, answers)]


def deep_texts(rows: Rows) -> list[str]:
    """Return the paths of texts of several words in lists inside of lists, which no field can name."""
    return list(dict.fromkeys(path for row in rows[:FEW_ROWS] for path in texts_at(row, "") if path.count("[]") > 1))


def texts_at(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, str) and len(value.split()) > 2:
        yield path
    inner = value.items() if isinstance(value, Mapping) else ()
    for key, item in inner:
        yield from texts_at(item, f"{path}.{key}".lstrip("."))
    for item in value if isinstance(value, list) else ():
        yield from texts_at(item, f"{path}[]")


def text_paths(rows: Rows, name: str) -> list[str]:
    """Return the paths of texts of several words one level inside a column of lists or objects."""
    found = nested_values(rows, name).items()
    return [path for path, held in found if any(isinstance(text, str) and len(text.split()) > 2 for text in held)]


def nested_values(rows: Rows, name: str) -> dict[str, list[Any]]:
    """Return the values one level inside a column of lists or objects, by path, if they contain words."""
    paths: dict[str, list[Any]] = {}
    for value in values_of(rows, name):
        held = opened_safely(value)
        inner = held.items() if isinstance(held, dict) else enumerate(held[:1]) if isinstance(held, list) else ()
        for key, item in inner:
            if says_something(item) and not WORSE.search(str(key)):
                paths.setdefault(f"{name}[{key}]" if isinstance(key, int) else f"{name}.{key}", []).append(item)
    return paths


def says_something(value: Any) -> bool:
    """Return whether a value contains a text of several words, or is a list of objects with texts of any length."""
    texts = list(texts_in(value))
    are_objects = isinstance(value, list) and any(isinstance(item, dict) for item in value)
    return any(len(text.split()) > 1 for text in texts) or (are_objects and bool(texts))


def numbered_columns(looks: Mapping[str, str]) -> Proposal:
    """Propose columns that differ only in their number as a dialogue, if they hold texts."""
    bases = [name.rstrip("0123456789") for name, look in looks.items() if name[-1:].isdigit() and look in SAID_LOOKS]
    often = max(bases, key=bases.count, default="")
    are_texts = any(look == "text" and name.rstrip("0123456789") == often for name, look in looks.items())
    return [("messages", f"{often}*", "")] if are_texts and often and bases.count(often) >= NUMBERED else []


def nested_messages(rows: Rows, looks: Mapping[str, str], texts: Sequence[str]) -> Proposal:
    """Propose a column of lists as a conversation, if its objects have roles or if no other column holds text."""
    nested = [name for name, look in looks.items() if look in ("list", "messages", "object") and name != "tools"]
    are_many = (
        sum(bool(nested_values(rows, name)) for name in nested) > 1
    )  # then no single one is the whole conversation
    for name in nested:
        held = (opened_safely(value) for value in values_of(rows, name))
        items = [item for value in held if isinstance(value, list) for item in value]
        if items and all(isinstance(item, dict) for item in items):
            keys = list(dict.fromkeys(key for item in items for key in item))
            named = [key for key in keys if any(isinstance(item.get(key), str | int) for item in items)]
            if set(keys) & set(ROLE_LIKE) or (not texts and len(named) > 1):
                return [
                    ("messages", name, ""),
                    ("role", *chosen_key(keys, ROLE_LIKE, items)),
                    ("content", *chosen_key(keys, CONTENT_LIKE, items)),
                ]
        elif not texts and not are_many and len(items) > 1 and all(map(is_said, items)):
            return [("messages", name, "texts that two speakers say in turn, the user first")]
    return []


def is_said(item: Any) -> bool:
    return isinstance(item, str) and len(item.split()) > 2


def chosen_key(keys: Sequence[str], like: Sequence[str], items: Sequence[Any]) -> tuple[str, str]:
    found = [key for key in keys if key in like and any(isinstance(item.get(key), str | int) for item in items)]
    return (found[0], "") if len(found) == 1 else (PLACEHOLDER, f"one of: {listed(keys)}")


def message_rows(rows: Rows, looks: Mapping[str, str]) -> Proposal:
    """Propose rows that are one message each as conversations, if a column holds the speaker."""
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
    one_of = f"the column with the same value in all rows of a conversation; one of: {listed(looks)}"
    return [
        ("group_by", group, one_of if group == PLACEHOLDER else ""),
        ("role", speakers[0], ""),
        ("content", said[0], ""),
    ]


def are_roles(values: Sequence[Any]) -> bool:
    names = {value for value in values if isinstance(value, str)}
    return bool(names) and all(known_role(name) for name in names)


def marked_column(rows: Rows, texts: Sequence[str]) -> tuple[str, Markers] | None:
    """Return a column whose texts contain turn markers, and the markers."""
    for name in texts:
        values = [str(value) for value in values_of(rows, name)]
        for style in STYLES:
            if values and all(has_marks(value, style) for value in values):
                return name, with_shown(style, values)
    return None
