"""A document: its turns, and the other variables that its chat template gets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Shape = Literal["text", "pair", "messages"]

NAMES = frozenset({"id", "name", "role", "tool_call_id", "type"})  # identifiers inside a message: never changed
ARGUMENTS = "arguments"  # of a tool call: everything in them is data, whatever its key


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: a role and its text. A text is one turn of the role 'text'; a pair ends with user and assistant.

    `more` holds the message's other keys, as `apply_chat_template` names them: `tool_calls` (with parsed arguments),
    `tool_call_id`, `name`, `reasoning_content`; and `content`, if it is None or a list of parts.
    `is_trained` is the row's own flag for the turn; None if it has none.
    """

    role: str
    text: str
    more: Mapping[str, Any] = field(default_factory=dict)
    is_trained: bool | None = None

    def message(self) -> dict[str, Any]:
        """Return the turn as the message that a chat template gets."""
        return {"role": self.role, "content": self.text, **self.more}

    def map_texts(self, change: Callable[[str], str]) -> Turn:
        """Return the turn with `change` applied to all of its texts; names and ids stay as they are."""
        more = map_texts(self.more, change, NAMES) if self.more else self.more
        return Turn(self.role, change(self.text), more, self.is_trained)

    def said(self) -> str:
        """Return everything that the turn says as one text, to be counted, compared and searched."""
        if not self.more:
            return self.text
        parts = {} if self.text else {"content": self.more.get("content")}  # else the parts repeat the text
        more = {**self.more, "content": None, **parts}
        rest = (value if isinstance(value, str) else canonical(value) for value in more.values() if value)
        return "\n".join(filter(None, (self.text, *rest)))


@dataclass(frozen=True, slots=True)
class Document:
    """One document; `record` is its record's index in the file part, from 0.

    `variables` are the chat template's inputs other than the messages: `tools`, and settings of the row such as
    `enable_thinking`.
    """

    record: int
    shape: Shape
    turns: tuple[Turn, ...]
    variables: Mapping[str, Any] = field(default_factory=dict)


def map_texts(value: Any, change: Callable[[str], str], kept: frozenset[str]) -> Any:
    """Return JSON-like data with `change` applied to its texts, except those under a `kept` key."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [map_texts(item, change, kept) for item in value]
    if isinstance(value, Mapping):
        return {
            key: item if key in kept else map_texts(item, change, frozenset() if key == ARGUMENTS else kept)
            for key, item in value.items()
        }
    return value


def shortened(text: str, characters: int) -> str:
    """Return a text, or its beginning with three dots, in at most `characters`."""
    return text if len(text) <= characters else f"{text[: characters - 3]}..."


def canonical(value: Any) -> str:
    """Return data as canonical JSON: the same text for equal data."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
