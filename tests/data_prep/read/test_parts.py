from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.files.formats import Format
from data_prep.read.parts import PLAIN, Columns, Document, FilePart, Rejected, read_part
from data_prep.rows.row_layouts import Layout

JSONL = Format(kind="jsonl")
PAIR = Columns(shape="pair", layout=Layout(prompt=("prompt",), completion=("completion",)), format=JSONL)
TALK = Columns(shape="messages", layout=Layout(messages=("messages",)), format=JSONL)


def part(path: Path, columns: Columns = PAIR) -> FilePart:
    return FilePart(file=0, location=str(path), start=0, end=path.stat().st_size, columns=columns)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "a", ', "bad JSON"),
        (b'["a", "b"]', "not a JSON object"),
        (b'{"prompt": "a"}', "missing column"),
        (b'{"prompt": "a", "completion": 5}', "not text"),
        (b'{"prompt": "\xff", "completion": "b"}', "invalid UTF-8"),
        (b"", "blank line"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_line_is_rejected_by_reason_and_its_neighbours_are_kept(
    lines_file: Callable[..., Path], line: bytes, reason: str
) -> None:
    good = {"prompt": "a", "completion": "b"}

    first, bad, last = read_part(part(lines_file(good, line, good)))

    assert bad == Rejected(1, reason)
    assert isinstance(first, Document) and isinstance(last, Document) and last.record == 2


@pytest.mark.parametrize("messages", ["hello", [5], [{"role": "user"}], [{"role": "user", "content": ["parts"]}]])
def test_messages_that_are_not_role_and_text_are_rejected(
    lines_file: Callable[..., Path], messages: list[Any] | str
) -> None:
    path = lines_file({"messages": messages})

    assert list(read_part(part(path, TALK))) == [Rejected(0, "not a list of role and content")]


@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=20), cut=st.integers(1, 200))
def test_every_record_is_read_exactly_once_wherever_a_file_is_cut(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), encoding="utf-8")
    columns, size = Columns(shape="text", layout=PLAIN, format=JSONL), path.stat().st_size

    ranges = [(start, min(start + cut, size)) for start in range(0, size, cut)]
    parts = [FilePart(file=0, location=str(path), start=start, end=end, columns=columns) for start, end in ranges]
    found = [item for each in parts for item in read_part(each)]

    whole = list(read_part(part(path, columns)))
    assert len(found) == len(whole) == len(texts)
    assert [getattr(item, "turns", None) for item in found] == [getattr(item, "turns", None) for item in whole]
