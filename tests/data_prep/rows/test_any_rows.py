"""Whatever rows hold, they are read, counted as rejected, or refused with a message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError
from data_prep.config import SourceConfig
from data_prep.read.column_choice import find_columns
from data_prep.read.parts import Document, Rejected, read_part
from data_prep.read.parts import FilePart as FilePart
from data_prep.rows.field_proposals import proposal_lines

KEYS = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "text",
    "chosen",
    "rejected",
    "system",
    "history",
    "tools",
    "label",
    "role",
    "content",
    "dialog",
    "from",
    "value",
    "type",
    "tool_calls",
    "weight",
    "name",
    "arguments",
    "input",
    "output",
    "message_id",
    "parent_id",
]
TEXTS = [
    "",
    " ",
    "user",
    "gpt",
    "Hi there you",
    "[",
    '[{"role": "user", "content": "a"}]',
    "['a' 'b']",
    "\n\nHuman: a\n\nAssistant: b",
]
leaves = st.one_of(st.none(), st.booleans(), st.integers(-1, 2), st.floats(allow_nan=False), st.sampled_from(TEXTS))
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
rows = st.lists(st.dictionaries(st.sampled_from(KEYS), values, max_size=5), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(rows=rows)
def test_any_rows_are_read_counted_or_refused(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    try:
        columns = find_columns(path, SourceConfig(path=str(path)))
    except DataError as problem:
        assert "write" in str(problem).lower()
        assert all(isinstance(line, str) for line in proposal_lines(rows))
        return
    size = path.stat().st_size
    found = list(read_part(FilePart(file=0, location=str(path), start=0, end=size, columns=columns)))

    assert [item.record for item in found] == list(range(len(found)))
    assert all(isinstance(item, Rejected) or (isinstance(item, Document) and item.turns) for item in found)
    assert len(found) == len(rows) or (columns.layout is not None and columns.layout.is_whole)
