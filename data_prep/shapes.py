"""From a row's columns to who says what: shapes are found by looking at the rows."""

from __future__ import annotations

import fnmatch
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from cluster.errors import ConfigError
from data_prep.streams import ObjectionError
from data_prep.turns import Shape, Turn

Role = Literal["text", "prompt", "completion", "messages"]
Fields = Mapping[Role, str]

KNOWN_COLUMNS: tuple[tuple[Shape, tuple[str, ...]], ...] = (
    ("messages", ("chosen_messages",)),  # preference pairs: the better answer is learnt
    ("messages", ("conversations", "chosen")),
    ("messages", ("conversations",)),
    ("messages", ("messages",)),
    ("pair", ("prompt", "completion")),
    ("pair", ("prompt", "chosen")),
    ("pair", ("instruction", "output")),
    ("pair", ("question", "answer")),
    ("text", ("text",)),
)
SPEAKERS = {  # what ShareGPT files call them
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
}
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
EXTRA_COLUMNS = ("tools", *MEDIA)  # read beside a row's own
NUMBERED = 3  # so many columns that differ in their number only may be the turns of a dialogue,
SPOKEN = re.compile(r"(.*(?:turn|utterance|sentence|message)[ _.-]?)(\d+)", re.IGNORECASE)  # and are, if so called


def columns_of(row: Mapping[str, Any], label: str, fields: Fields) -> tuple[Shape, tuple[str, ...]] | None:
    """Return the shape and columns that a row's names, or else `fields`, tell; None if the row lacks them."""
    choices = [named_columns(label, fields)] if fields else known_columns(row)
    for shape, patterns in choices:
        names = tuple(name for pattern in patterns for name in matching(pattern, row))
        if names and all(matching(pattern, row) for pattern in patterns):
            return shape, names
    return None


def known_columns(row: Mapping[str, Any]) -> Iterator[tuple[Shape, tuple[str, ...]]]:
    """Yield what can be understood by itself, completed by the columns that go with it in this row."""
    if isinstance(row.get("chosen"), list) and isinstance(row.get("prompt", ""), str):
        yield "messages", ("chosen",)  # holds the prompt too
    for shape, names in KNOWN_COLUMNS:
        if names == ("instruction", "output") and "input" in row:
            names = ("instruction", "input", "output")
        if isinstance(row.get("label"), bool) and shape != "text":
            names = (*names, "label")  # one answer to a line, marked as wanted or not
        yield shape, names
    spoken = sorted((int(match[2]), match[1], match[0]) for match in map(SPOKEN.fullmatch, row) if match)
    first = spoken[0][0] if spoken else 0
    is_gapless = [number for number, _, _ in spoken] == list(range(first, first + len(spoken)))
    if len(spoken) >= NUMBERED and first < 2 and is_gapless and len({prefix for _, prefix, _ in spoken}) == 1:
        yield "messages", tuple(name for _, _, name in spoken)


def named_columns(label: str, fields: Fields) -> tuple[Shape, tuple[str, ...]]:
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


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a pattern with `*` matches, numbers in their order; a plain name matches itself."""
    if pattern in names:
        return [pattern]
    found = [name for name in names if "*" in pattern and fnmatch.fnmatchcase(name, pattern)]
    return sorted(
        found, key=lambda name: [(len(part), part) if part.isdigit() else (0, part) for part in numbers(name)]
    )


def shortened(names: Iterable[str]) -> str:
    """Return column names for people: those that differ in their number only as one, with how many they are."""
    families = Counter(re.sub(r"\d+$", "*", name) for name in names)
    return ", ".join(
        name if count == 1 and "*" not in name else f"{name} ({count})" for name, count in families.items()
    )


def numbers(name: str) -> list[str]:
    return re.split(r"(\d+)", name)


def example_fields(row: Mapping[str, Any]) -> str:
    """Return the `fields` that a person may want to write for a row that is not understood."""
    texts = [name for name, value in row.items() if isinstance(value, str)]
    numbered = [re.sub(r"\d+$", "*", name) for name in texts if name[-1:].isdigit()]
    often = max(numbered, key=numbered.count, default="")
    if numbered.count(often) >= NUMBERED:
        return f"messages: {often}"
    return f"prompt: {texts[0]}, completion: {texts[1]}" if len(texts) > 1 else f"text: {(texts or ['COLUMN'])[0]}"


def turns_of_row(row: Mapping[str, Any], shape: Shape, names: tuple[str, ...]) -> tuple[Turn, ...]:
    """Return the turns of a row. Raises ObjectionError."""
    if not all(name in row for name in names):
        raise ObjectionError("missing column")
    if any(row.get(name) for name in MEDIA if name not in names):
        raise ObjectionError("needs an image, audio or video")
    values = [row[name] for name in names if not isinstance(row[name], bool)]
    if any(row[name] is False for name in names):
        raise ObjectionError("label says it is not wanted")
    if shape == "messages":
        return with_tools(tuple(turns_of_messages(values)), row.get("tools"))
    if names[:2] == ("instruction", "input"):
        values[1] = values[1] or ""
    if not all(isinstance(value, str) for value in values):
        raise ObjectionError("not text")
    if shape == "text":
        return (Turn("text", "\n".join(values)),)
    *asked, answer = values
    return Turn("user", "\n\n".join(text for text in asked if text) or asked[0]), Turn("assistant", answer)


def turns_of_messages(values: list[Any]) -> Iterator[Turn]:
    """Yield the turns of lists of messages, of a single message, or of texts that two people say in turn."""
    spoken = sum(isinstance(value, list) for value in values)  # a text after a conversation is the answer to it
    for value in values:
        if isinstance(value, str) and len(values) > 1:
            if value.strip():
                yield Turn(("user", "assistant")[spoken % 2], value)
                spoken += 1
            continue
        messages = value if isinstance(value, list) else [value]
        for message in messages:
            if not isinstance(message, Mapping):
                raise ObjectionError("not a list of role and content")
            yield turn_of(message)


def turn_of(message: Mapping[str, Any]) -> Turn:
    """Return one message's turn; its words are under role and content, or under from and value."""
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if not isinstance(role, str) or not isinstance(content, str | list | None):
        raise ObjectionError("not a list of role and content")
    parts = [text_of_part(part) for part in content] if isinstance(content, list) else [content or ""]
    if role == "function_call":
        parts = [tool_call(content)]
    parts += [
        tool_call(call.get("function", call)) for call in message.get("tool_calls") or () if isinstance(call, dict)
    ]
    if content is None and not message.get("tool_calls"):
        raise ObjectionError("not a list of role and content")
    return Turn(SPEAKERS.get(role, role), "\n".join(part for part in parts if part))


def text_of_part(part: Any) -> str:
    """Return one part of a message that is made of parts."""
    if not isinstance(part, Mapping):
        raise ObjectionError("not a list of role and content")
    kind = part.get("type", "text")
    value = part.get("value", part.get("text", part.get(kind) if isinstance(kind, str) else None))
    if kind == "tool_call":
        return tool_call(value)
    if kind not in ("text", "reasoning"):
        raise ObjectionError("needs an image, audio or video")
    if not isinstance(value, str):
        raise ObjectionError("not a list of role and content")
    return f"<think>\n{value}\n</think>\n" if kind == "reasoning" else value


def tool_call(value: Any) -> str:
    """Return a call as the models that know tools write it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"<tool_call>\n{text}\n</tool_call>"


def with_tools(turns: tuple[Turn, ...], tools: Any) -> tuple[Turn, ...]:
    """Return a conversation whose system turn tells which tools there are: without it, calls come from nowhere."""
    if not tools or tools == "[]":
        return turns
    told = "Tools:\n" + (tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False))
    if turns and turns[0].role == "system":
        return (Turn("system", f"{turns[0].text}\n\n{told}"), *turns[1:])
    return (Turn("system", told), *turns)
