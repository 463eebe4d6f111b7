"""Find the speakers in a sample of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.files.bounded_io import RecordError
from data_prep.rows.column_looks import Rows
from data_prep.rows.messages import ROLE_KEYS
from data_prep.rows.roles import known_role, speaker
from data_prep.rows.row_layouts import Layout
from data_prep.rows.value_paths import matching, opened, value_at


def messages_of(rows: Rows, layout: Layout) -> Iterator[Mapping[str, Any]]:
    """Yield every message of some rows."""
    if layout.is_joined:
        yield from rows
        return
    for row in rows:
        names = [name for pattern in layout.messages for name in matching(pattern, row)]
        for value in (*(value_at(row, name) for name in names), row.get(layout.history or "")):
            try:
                held = opened(value) if isinstance(value, str) and not layout.markers else value
            except RecordError:
                continue
            items = held if isinstance(held, list) else [held]
            yield from (item for item in items if isinstance(item, Mapping))


def speakers(rows: Rows, layout: Layout) -> list[str]:
    """Return the speakers' names, each once."""
    if layout.user is not None:
        return []
    keys = (layout.role,) if layout.role else ROLE_KEYS
    names = (message.get(key) for message in messages_of(rows, layout) for key in keys)
    return list(dict.fromkeys(called for name in names if (called := speaker(name)) is not None))


def unknown_speakers(rows: Rows, layout: Layout) -> list[str]:
    """Return the speakers whose role is unknown."""
    own = layout.roles
    return [name for name in speakers(rows, layout) if known_role(name, own) is None]
