"""A layout: which column of a row holds what, by a source's `fields` or by the detected kind of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from data_prep.documents import Shape
from data_prep.rows.value_paths import column_of, matching

Names = tuple[str, ...]

MEDIA = ("image", "images", "audio", "audios", "video", "videos")
VARIABLES, THINKING = "chat_template_kwargs", "enable_thinking"  # a row's inputs to its chat template
EXTRA_COLUMNS = (VARIABLES, THINKING, *MEDIA)  # read in addition to the layout's columns
READ = ("text", "system", "history", "context", "prompt", "input", "completion", "messages", "tools", "label")
JOINING = ("group_by", "order_by", "id", "parent_id", "rank")  # columns that join several rows into one conversation
KEYS = ("role", "content", "user", "assistant", "train", "masked")  # keys of a message; columns, if a row is a message


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Columns, or paths in them, by their meaning; absent ones are None or empty.

    `said` is the system turn for rows without one, `roles` maps speakers to roles, `markers` are the beginnings of
    turns inside a text by role ('ignore': removed), and `paths` says which paths of a tree are conversations.
    """

    text: Names = ()
    prompt: Names = ()
    completion: Names = ()
    messages: Names = ()
    system: Names = ()
    context: Names = ()
    input: Names = ()
    history: str | None = None
    tools: str | None = None
    label: str | None = None
    role: str | None = None
    content: str | None = None
    user: str | None = None
    assistant: str | None = None
    train: str | None = None
    masked: str | None = None
    rows: str | None = None
    group_by: str | None = None
    order_by: str | None = None
    id: str | None = None
    parent_id: str | None = None
    rank: str | None = None
    said: str | None = None
    roles: tuple[tuple[str, str], ...] = ()
    markers: tuple[tuple[str, Names], ...] = ()
    paths: Literal["best", "all"] = "best"

    @property
    def shape(self) -> Shape:
        if self.text:
            return "text"
        return "pair" if self.prompt else "messages"

    @property
    def is_joined(self) -> bool:
        """Whether several rows form one conversation, so that the file is read as a whole."""
        return self.group_by is not None or self.parent_id is not None

    @property
    def is_whole(self) -> bool:
        """Whether a file's documents are not its records one by one: such a file is never cut."""
        return self.is_joined or self.rows is not None

    @property
    def single(self) -> str | None:
        """The one column whose texts are the documents, unchanged; None if there is no such column."""
        if len(self.text) == 1 and not self.is_whole and not any(mark in self.text[0] for mark in "*.["):
            return self.text[0]
        return None

    def named(self) -> list[str]:
        """Return every column, path and pattern that is read from a row."""
        keys = KEYS if self.is_joined else ()
        values = (getattr(self, name) for name in (*READ, *keys, *JOINING))
        return [name for value in values for name in ([value] if isinstance(value, str) else value or ())]

    def columns(self, seen: Iterable[str]) -> Names:
        """Return the columns among `seen` that are read."""
        there = dict.fromkeys(seen)
        found = (column_of(name, there) for pattern in self.named() for name in matching(pattern, there))
        return tuple(dict.fromkeys(name for name in found if name in there))

    def changes(self) -> dict[str, Any]:
        """Return what differs from an empty layout, as JSON."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}


def layout_from(values: Mapping[str, Any]) -> Layout:
    """Return the layout that `changes` described; lists from JSON become tuples."""
    return Layout(**{name: frozen(value) for name, value in values.items()})


def frozen(value: Any) -> Any:
    return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value


def as_fields(layout: Layout, seen: Iterable[str]) -> dict[str, Any]:
    """Return the `fields` that give a layout; optional columns only if they are among `seen`."""
    left_out = ("said", "roles", "markers", "paths")
    there = set(seen)
    shown = replace(
        layout,
        system=tuple(name for name in layout.system if name in there),
        context=tuple(name for name in layout.context if name in there),
        input=tuple(name for name in layout.input if name in there),
        history=layout.history if layout.history in there else None,
    )
    return {
        name: (value[0] if len(value) == 1 else list(value)) if isinstance(value, tuple) else value
        for name, value in asdict(shown).items()
        if value and name not in left_out
    }
