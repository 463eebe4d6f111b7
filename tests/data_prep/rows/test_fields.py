"""`fields` and what stands beside it: any rows are opened without code, and nothing in it is ignored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import ConfigError, DataError
from data_prep.fetch.sources import find_corpus, not_read, parts_of
from data_prep.read.parts import read_part
from tests.data_prep.reading_rows import all_kept, read, source_of

MARKS = {"user": "U:", "assistant": "A:"}
PAIR = [("user", "Hi"), ("assistant", "Ho")]


@pytest.mark.parametrize(
    ("row", "fields", "expected"),
    [
        ({"body": "a"}, {"text": "body"}, [("text", "a")]),
        ({"title": "a", "body": "b"}, {"text": ["title", "body"]}, [("text", "a\n\nb")]),
        ({"par2": "b", "par1": "a", "par10": "c"}, {"text": "par*"}, [("text", "a\nb\nc")]),
        ({"text": "x", "ask": "Hi", "completion": "Ho"}, {"prompt": "ask"}, PAIR),
        (
            {"title": "A", "body": "B", "reply": "Ho"},
            {"prompt": ["title", "body"], "completion": "reply"},
            [("user", "A\n\nB"), PAIR[1]],
        ),
        ({"title": None, "body": "Hi", "reply": "Ho"}, {"prompt": ["title", "body"], "completion": "reply"}, PAIR),
        ({"a": {"b": [{"c": "Hi"}]}, "d.e": "Ho"}, {"prompt": "a.b[0].c", "completion": "d.e"}, PAIR),
        ({"a": '{"b": ["x", "Hi"]}', "d": ["Ho"]}, {"prompt": "a.b[-1]", "completion": "d[0]"}, PAIR),
        (
            {"q": "Hi", "r": "Ho", "who": "Be kind.", "doc": "A port.", "more": "Now.", "past": [["A", "B"]]},
            {"prompt": "q", "completion": "r", "system": "who", "context": "doc", "input": "more", "history": "past"},
            [("system", "Be kind."), ("user", "A"), ("assistant", "B"), ("user", "A port.\n\nHi\n\nNow."), PAIR[1]],
        ),
        (
            {"utterances": [{"speaker": "USER", "text": "Hi"}, {"speaker": "agent", "text": "Ho"}]},
            {"messages": "utterances", "role": "speaker", "content": "text"},
            PAIR,
        ),
        ({"talk": [{"q": "Hi", "a": "Ho"}]}, {"messages": "talk", "user": "q", "assistant": "a"}, PAIR),
        ({"talk": {"said": ["Hi", "Ho"]}}, {"messages": "talk.said"}, PAIR),
        ({"first": "Hi", "second": "Ho"}, {"messages": ["first", "second"]}, PAIR),
        ({f"line{n}": text for n, text in ((2, "Ho"), (1, "Hi"), (3, ""))}, {"messages": "line*"}, PAIR),
    ],
)
def test_fields_tell_which_column_is_what(
    lines_file: Callable[..., Path], row: dict[str, Any], fields: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert read(lines_file(row), fields=fields) == [expected]


def test_fields_read_nested_columns_of_parquet(tmp_path: Path) -> None:
    row = {
        "talk": {"turns": [{"who": "human", "said": {"en": "Hi"}}, {"who": "gpt", "said": {"en": "Ho"}}]},
        "other": 1,
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")

    with pytest.raises(DataError, match="keys of its messages: who, said"):
        read(tmp_path / "a.parquet", fields={"messages": "talk.turns", "role": "speaker", "content": "said"})
    assert read(
        tmp_path / "a.parquet", fields={"prompt": "talk.turns[0].said.en", "completion": "talk.turns[1].said.en"}
    ) == [PAIR]


def test_what_a_parquet_column_has_filled_up_with_nulls_is_not_part_of_a_call(tmp_path: Path) -> None:
    def said(arguments: Any) -> list[dict[str, Any]]:
        return [
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        ]

    pq.write_table(
        pa.Table.from_pylist([{"messages": said({"a": 1})}, {"messages": said({"b": 2})}]), tmp_path / "a.parquet"
    )
    (file,) = find_corpus([source_of(tmp_path / "a.parquet")], {}).files

    calls = [
        item.turns[0].more["tool_calls"][0]["function"]["arguments"]
        for item in all_kept(read_part(*parts_of(0, file, 2**30)))
    ]

    assert calls == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "a", "prompt": "b"}, "gives text and prompt together; give one"),
        ({"messages": "a", "completion": "b"}, "gives prompt and messages together"),
        ({"system": "a"}, "gives only system; also give text, or prompt and completion"),
        ({"text": "a", "system": "b"}, "system cannot be used with text"),
        ({"prompt": "a", "role": "b"}, "role cannot be used with prompt"),
        ({"prompt": ["b", "a"], "completion": "a"}, "a is both the prompt and the completion"),
        ({"messages": "a", "order_by": "b"}, "order_by cannot be used with messages"),
        ({"messages": "a", "history": "b"}, "history cannot be used with messages"),
        ({"group_by": "a", "messages": "b"}, "gives messages and group_by together"),
        ({"parent_id": "a"}, "parent_id needs id"),
        ({"messages": "a", "user": "b"}, "user and assistant go together"),
        ({"messages": "a", "user": "b", "assistant": "c", "role": "d"}, "replace role and content"),
        ({"messages": "a", "train": "b", "masked": "c"}, "are opposites"),
        ({"prompt": "???", "completion": "a"}, r"fields\.prompt.*\?\?\? is a placeholder; write the name of a column"),
        ({"prompt": ["a", "???"]}, "is a placeholder; write the name of a column"),
        ({"prompt": ""}, "got an empty text"),
        ({"prompt": []}, "at least one column"),
        ({"promt": "a"}, "unknown key; did you mean 'prompt'"),
        ({"prompt": 5}, "got 5"),
    ],
)
def test_fields_that_say_nothing_or_two_things_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source_of(Path("a.jsonl"), fields=fields)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"paths": "all"}, "'paths' is for trees"),
        ({"markers": {"user": "a", "assistant": "b"}}, "'markers' need the column"),
        ({"markers": {"user": "a"}, "fields": {"messages": "a"}}, "need both 'user' and 'assistant'"),
        ({"system": "Be kind.", "fields": {"text": "a"}}, "has no turns"),
        ({"roles": {"x": "bot"}}, "expected 'system', 'user', 'assistant' or 'tool', got 'bot'"),
        ({"roles": {"x": "???"}}, "expected 'system', 'user', 'assistant' or 'tool'"),
    ],
)
def test_what_stands_beside_fields_and_says_nothing_is_refused(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source_of(Path("a.jsonl"), **source)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "body"}, "no columns body; columns seen: ask, reply, talk"),
        ({"prompt": "ask.x", "completion": "reply"}, r"no columns ask\.x; columns seen"),
        ({"prompt": "ask"}, "no columns completion"),
        (
            {"prompt": "ask", "completion": "reply", "system": "Be kind."},
            r'a text that is said in every row .* `system: "\.\.\."`',
        ),
        ({"messages": "talk"}, r"neither role and content .* keys: who, what.*role: \?\?\?, content: \?\?\?"),
        (
            {"messages": "talk", "role": "who", "content": "text"},
            "no message has text; keys of its messages: who, what",
        ),
        ({"messages": "line*"}, r"no columns line\*"),
    ],
)
def test_fields_that_are_in_no_row_are_named_with_what_is_there(
    lines_file: Callable[..., Path], fields: dict[str, str], message: str
) -> None:
    row = {"ask": "Hi", "reply": "Ho", "talk": [{"who": "user", "what": "Hi"}]}

    with pytest.raises(DataError, match=message):
        read(lines_file(row), fields=fields)


def test_a_constant_system_text_is_said_where_a_row_has_none(lines_file: Callable[..., Path]) -> None:
    rows = [{"prompt": "Hi", "completion": "Ho", "system": text} for text in ("", "Be short.")]

    found = read(lines_file(*rows), system="Be kind.")

    assert found == [[("system", "Be kind."), *PAIR], [("system", "Be short."), *PAIR]]


@pytest.mark.parametrize(
    ("text", "markers", "expected"),
    [
        ("\nUser: Hi\nBot: Ho", {"user": "\nUser:", "assistant": "\nBot:"}, PAIR),
        (
            "User: Hi\nBot: Ho\nit is User: me",
            {"user": "\nUser:", "assistant": "\nBot:"},
            [PAIR[0], ("assistant", "Ho\nit is User: me")],
        ),
        (
            "Below.\n### Instruction:\nHi\n### Response:\nHo",
            {"user": "### Instruction:", "assistant": "### Response:"},
            [("system", "Below."), *PAIR],
        ),
        (
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Ho </s><s>[INST] A [/INST] B </s>",
            {"system": "<<SYS>>", "user": ["[INST]", "<</SYS>>"], "assistant": "[/INST]", "ignore": ["<s>", "</s>"]},
            [("system", "Be kind."), *PAIR, ("user", "A"), ("assistant", "B")],
        ),
        ("no marks", {"user": "U:", "assistant": "A:"}, "none of the markers in the text"),
        ("U: Hi A: ", {"user": "U:", "assistant": "A:"}, "a marker with nothing after it"),
    ],
)
def test_markers_cut_a_text_into_turns(
    lines_file: Callable[..., Path], text: str, markers: dict[str, Any], expected: list[tuple[str, str]] | str
) -> None:
    assert read(lines_file({"dialog": text}), fields={"messages": "dialog"}, markers=markers) == [expected]


def test_speakers_may_be_numbers_or_truths(lines_file: Callable[..., Path]) -> None:
    rows = [{"talk": [{"by": a, "text": "Hi"}, {"by": b, "text": "Ho"}]} for a, b in ((1, 0), (True, False))]
    fields = {"messages": "talk", "role": "by", "content": "text"}

    with pytest.raises(DataError, match=r'roles: \{"1": user, "0": assistant\}'):
        read(lines_file(rows[0]), fields=fields)
    roles = {"1": "user", "true": "user", "0": "assistant", "false": "assistant"}
    assert read(lines_file(*rows), fields=fields, roles=roles) == [PAIR, PAIR]


@pytest.mark.parametrize(
    ("row", "source", "message"),
    [
        ({"text": "a"}, {"system": "Be kind."}, "nobody speaks"),
        (
            {"messages": [{"role": "user", "content": "a"}]},
            {"fields": {"messages": "messages"}, "markers": MARKS},
            "no text",
        ),
    ],
)
def test_settings_that_say_nothing_about_these_rows_are_refused(
    lines_file: Callable[..., Path], row: dict[str, Any], source: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(lines_file(row), **source)


def test_fields_of_files_without_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a book")

    with pytest.raises(DataError, match="fields apply to rows, and no file here has rows"):
        read(tmp_path / "a.txt", fields={"text": "text"})


def test_columns_that_fields_leave_out_are_named(lines_file: Callable[..., Path]) -> None:
    row = {"ask": "Hi", "reply": "Ho", "system": "You are a very kind assistant.", "n": 1}
    corpus = find_corpus([source_of(lines_file(row), name="s", fields={"prompt": "ask", "completion": "reply"})], {})

    assert not_read(corpus, "s") == ["system"]
