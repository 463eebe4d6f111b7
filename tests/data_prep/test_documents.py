from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError, DataError
from data_prep.documents import Columns, Document, Part, Rejected, find_columns, read_part
from data_prep.formats import Format

JSONL = Format(kind="jsonl")
PAIR = Columns(shape="pair", names=("prompt", "completion"), format=JSONL)


def part(path: Path, columns: Columns = PAIR) -> Part:
    return Part(file=0, location=str(path), start=0, end=path.stat().st_size, columns=columns)


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
def test_a_bad_line_is_rejected_by_reason_and_its_neighbours_are_kept(lines_file, line, reason):
    good = {"prompt": "a", "completion": "b"}

    first, bad, last = read_part(part(lines_file(good, line, good)))

    assert bad == Rejected(1, reason)
    assert isinstance(first, Document) and isinstance(last, Document) and last.record == 2


@pytest.mark.parametrize("messages", ["hello", ["hello"], [{"role": "user"}], [{"role": "user", "content": ["parts"]}]])
def test_messages_that_are_not_role_and_text_are_rejected(lines_file, messages):
    path = lines_file({"messages": messages})

    assert list(read_part(part(path, Columns(shape="messages", names=("messages",), format=JSONL)))) == [
        Rejected(0, "not a list of role and content")
    ]


@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=20), cut=st.integers(1, 200))
def test_every_record_is_read_exactly_once_wherever_a_file_is_cut(tmp_path_factory, texts, cut):
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), encoding="utf-8")
    columns, size = Columns(shape="text", names=("text",), format=JSONL), path.stat().st_size

    ranges = [(start, min(start + cut, size)) for start in range(0, size, cut)]
    parts = [Part(file=0, location=str(path), start=start, end=end, columns=columns) for start, end in ranges]
    found = [item for each in parts for item in read_part(each)]

    whole = list(read_part(part(path, columns)))
    assert len(found) == len(whole) == len(texts)
    assert [getattr(item, "turns", None) for item in found] == [getattr(item, "turns", None) for item in whole]


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"text": "a"}, "text"),
        ({"prompt": "a", "completion": "b"}, "pair"),
        ({"question": "a", "answer": "b", "text": "c"}, "pair"),
        ({"messages": [], "text": "c"}, "messages"),
    ],
)
def test_the_shape_is_found_from_the_columns(lines_file, row, shape):
    assert find_columns(lines_file(row), "rows", {}).shape == shape


def test_fields_override_what_the_columns_tell(lines_file):
    path = lines_file({"text": "a", "ask": "b", "completion": "c"})

    assert find_columns(path, "rows", {"prompt": "ask"}) == Columns(
        shape="pair", names=("ask", "completion"), format=JSONL
    )


def test_columns_that_cannot_be_told_are_listed_with_the_line_to_write(lines_file):
    path = lines_file({"id": 1, "ask": "a", "reply": "b"})

    with pytest.raises(DataError, match=r"columns seen: id, ask, reply.*`fields: \{prompt: ask, completion: reply\}`"):
        find_columns(path, "rows", {})


def test_fields_that_are_not_there_are_named(lines_file):
    with pytest.raises(DataError, match="no columns body; columns seen: text"):
        find_columns(lines_file({"text": "a"}), "rows", {"text": "body"})


def test_fields_of_two_shapes_are_refused(lines_file):
    with pytest.raises(ConfigError, match="give text, or prompt and completion, or messages"):
        find_columns(lines_file({"text": "a"}), "rows", {"text": "text", "prompt": "text"})


def test_a_file_without_any_json_object_is_refused(lines_file):
    with pytest.raises(DataError, match="one object on each line"):
        find_columns(lines_file(b"[", b"1,"), "rows", {})
