"""What a document is: who says what, and whatever else of it the chat template is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Shape = Literal["text", "pair", "messages"]

NAMES = frozenset({"id", "name", "role", "tool_call_id", "type"})  # what a message is tied together by: never mended
ARGUMENTS = "arguments"  # of a tool call: all that stands in them is data, whatever its key


@dataclass(frozen=True, slots=True)
class Turn:
    """Who says what. A text is one turn of the role 'text'; a pair ends with a user's and an assistant's.

    `more` holds what the message has beyond role and text, under the keys of `apply_chat_template`: `tool_calls` (their
    arguments parsed), `tool_call_id`, `name`, `reasoning_content`; and `content` that is None or parts.
    `is_trained` is what the row says of the turn; None: it says nothing.
    """

    role: str
    text: str
    more: Mapping[str, Any] = field(default_factory=dict)
    is_trained: bool | None = None

    def message(self) -> dict[str, Any]:
        """Return the turn as a chat template gets it."""
        return {"role": self.role, "content": self.text, **self.more}

    def mended(self, mend: Callable[[str], str]) -> Turn:
        """Return the turn with every text that is said in it mended; names and ids stay as they are."""
        more = mended(self.more, mend, NAMES) if self.more else self.more
        return Turn(self.role, mend(self.text), more, self.is_trained)

    def said(self) -> str:
        """Return all that the turn says as one text: what is counted, compared and searched."""
        if not self.more:
            return self.text
        parts = {} if self.text else {"content": self.more.get("content")}  # else they say the text once more
        more = {**self.more, "content": None, **parts}
        rest = (value if isinstance(value, str) else canonical(value) for value in more.values() if value)
        return "\n".join(filter(None, (self.text, *rest)))


@dataclass(frozen=True, slots=True)
class Document:
    """One document; `record` counts the records of its part from 0.

    `variables` is what the chat template gets beside the messages: `tools`, and what a row sets for it
    (`enable_thinking`).
    """

    record: int
    shape: Shape
    turns: tuple[Turn, ...]
    variables: Mapping[str, Any] = field(default_factory=dict)


def mended(value: Any, mend: Callable[[str], str], spared: frozenset[str]) -> Any:
    """Return JSON-like data with its texts mended, but for what stands under a `spared` key."""
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, list):
        return [mended(item, mend, spared) for item in value]
    if isinstance(value, Mapping):
        return {
            key: item if key in spared else mended(item, mend, frozenset() if key == ARGUMENTS else spared)
            for key, item in value.items()
        }
    return value


def shortened(text: str, characters: int) -> str:
    """Return a text, or as much of its beginning as `characters` hold with the dots that say so."""
    return text if len(text) <= characters else f"{text[: characters - 3]}..."


def canonical(value: Any) -> str:
    """Return data as one spelling of JSON, the same for equal data."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
