"""What was said in a chat: undone, trimmed to what the model sees, and saved as training data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import write_text
from cluster.errors import ConfigError

Messages = list[dict[str, str]]


@dataclass(kw_only=True)
class Conversation:
    """Turns of a user's message and its answer. `first` is the first turn that the model still sees.

    With `is_text` each turn is a text of its own, and the answer continues it.
    """

    is_text: bool = False
    system: str | None = None
    turns: list[tuple[str, str]] = field(default_factory=list)
    first: int = 0
    saved: dict[Path, slice] = field(default_factory=dict)
    """The lines that hold this conversation, by file."""

    def messages(self, said: str | None = None, first: int = 0) -> Messages:
        """Return the messages from a turn on; `said` is a further one of the user's."""
        found: Messages = [{"role": "system", "content": self.system}] if self.system else []
        for user, assistant in self.turns[first:]:
            found += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return [*found, {"role": "user", "content": said}] if said is not None else found

    def fitting(self, said: str, ids_of: Callable[[Messages], list[int]], limit: int | None) -> tuple[list[int], int]:
        """Return the ids of the conversation and how many more of its oldest turns had to be left out.

        `limit` is in tokens. If the message alone is longer, its ids are returned.
        """
        before = self.first
        while True:
            ids = ids_of(self.messages(said, self.first))
            if limit is None or len(ids) <= limit or self.first == len(self.turns):
                return ids, self.first - before
            self.first += 1

    def undo(self) -> str | None:
        """Take the last turn back and return the user's message; None if there is none."""
        if not self.turns:
            return None
        user, _ = self.turns.pop()
        self.first = min(self.first, len(self.turns))
        return user

    def reset(self) -> None:
        """Begin anew; the system message stays."""
        self.turns.clear()
        self.first = 0
        self.saved.clear()

    def save(self, path: Path) -> None:
        """Add the conversation to a .jsonl file as `prepare` reads it; saved again, it replaces itself there.

        Raises ConfigError if there is nothing to save or the file holds something else.
        """
        if not self.turns:
            raise ConfigError("nothing to save yet")
        if path.suffix != ".jsonl":
            raise ConfigError(f"{path}: chats are saved as JSON lines; give a name that ends in .jsonl")
        lines = chats_in(path)
        own = [json.dumps(values, ensure_ascii=False) for values in self.records()]
        place = self.saved.get(path.resolve(), slice(len(lines), len(lines)))
        lines[place] = own
        write_text(path, "".join(f"{line}\n" for line in lines))
        self.saved[path.resolve()] = slice(place.start, place.start + len(own))

    def records(self) -> list[dict[str, Any]]:
        """Return the conversation as rows of training data."""
        if self.is_text:
            return [{"text": begin + rest} for begin, rest in self.turns]
        return [{"messages": self.messages()}]


def chats_in(path: Path) -> list[str]:
    """Return the lines of a file of chats; none if there is no such file. Raises ConfigError for another file."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        chats: list[Any] = [json.loads(line) for line in lines if line]
    except ValueError:
        chats = [None]
    if not all(isinstance(chat, dict) and chat.keys() & {"messages", "text"} for chat in chats):
        raise ConfigError(f"{path}: holds something other than chats; give another name")
    return [line for line in lines if line]
