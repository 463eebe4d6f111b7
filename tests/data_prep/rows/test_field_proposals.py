"""What a person is shown for rows that are not understood: never a line that trains what nobody wants learnt."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from pydantic import ValidationError

from cluster.errors import DataError
from data_prep.config import SourceConfig
from data_prep.files.formats import Format
from data_prep.read.column_choice import find_columns
from data_prep.rows.field_guesses import propose
from data_prep.rows.field_proposals import ask, proposal_lines
from data_prep.rows.row_kinds import kinds_of
from tests.data_prep.reading_rows import source_of

JSON = Format(kind="json")


def line_of(message: str) -> str:
    """Return the line to write that a message gives."""
    line = re.search("`(fields.*)`", message)
    assert line is not None
    return line[1]


def fields_of(*rows: Any) -> dict[str, Any]:
    proposal, _ = propose(rows)
    return {name: value for name, value, _ in proposal}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"title": "A day at the port", "body": "It was a fine day there."}, {"prompt": "???", "completion": "???"}),
        (
            {"question": "How deep is the water?", "reply": "It is nine metres."},
            {"prompt": "question", "completion": "???"},
        ),
        ({"id": "a1", "url": "http://a.b", "body": "It was a fine day there."}, {"text": "body"}),
        ({"id": "a1", "label": "good", "score": "0.5", "link": "http://a.b/c"}, {"text": "???"}),
        ({"good": "It was a fine day.", "rejected_answer": "It was not so fine."}, {"text": "good"}),
        (
            {"utterances": [{"speaker": "x", "text": "Hi"}]},
            {"messages": "utterances", "role": "speaker", "content": "text"},
        ),
        ({"talk": [{"by": "x", "says": "Hi"}]}, {"messages": "talk", "role": "???", "content": "???"}),
        ({"lines": ["How deep is it?", "It is nine metres."]}, {"messages": "lines"}),
        (
            {"conversation_id": 1, "role": "user", "message": "Hi there"},
            {"group_by": "conversation_id", "role": "role", "content": "message"},
        ),
        (
            {"chat": 1, "speaker": "user", "message": "Hi there"},
            {"group_by": "???", "role": "speaker", "content": "message"},
        ),
        ({"id": "x", "line1": "a b c", "line2": "b c d", "line3": "c d e"}, {"messages": "line*"}),
        (
            {"question": "Which of these is it?", "options": ["one of", "two of"], "answer": "it is the first of them"},
            {"prompt": "???", "completion": "answer"},
        ),
        ({"log": "User: Hello\nBot: Hi there"}, {"messages": "log"}),
    ],
)
def test_a_proposal_is_open_where_it_is_not_sure(row: dict[str, Any], expected: dict[str, str]) -> None:
    assert not kinds_of([row]) and fields_of(row) == expected


def test_a_label_with_few_different_values_is_not_proposed() -> None:
    rows = [
        {"review": f"The film number {n} was a fine one.", "verdict": ("rather good", "rather bad")[n % 2]}
        for n in range(40)
    ]

    assert fields_of(*rows) == {"text": "review"}


def test_the_refusal_shows_the_columns_and_the_line(lines_file: Callable[..., Path]) -> None:
    path = lines_file({"id": 1, "ask": "How deep is it?", "reply": "It is nine metres."})

    with pytest.raises(
        DataError, match=r"columns seen: id, ask, reply.*`fields: \{prompt: \?\?\?, completion: \?\?\?\}`"
    ):
        find_columns(path, SourceConfig(path=str(path)))


def test_a_file_without_any_json_object_is_refused(lines_file: Callable[..., Path]) -> None:
    path = lines_file(b"[", b"1,")

    with pytest.raises(DataError, match="one object on each line"):
        find_columns(path, SourceConfig(path=str(path)))


def test_lines_for_texts_with_marks_and_for_unknown_speakers_are_yaml() -> None:
    marked = proposal_lines([{"log": "User: Hello\nBot: Hi there"}])
    spoken = proposal_lines([{"messages": [{"role": "Dr. Bob", "content": "Hi"}]}])

    assert marked == ["fields:", "  messages: log", 'markers: {user: ["\\nUser:"], assistant: ["\\nBot:"]}']
    assert spoken == ["roles:", '  "Dr. Bob": ???  # user, assistant, system or tool']


def test_marks_of_tools_and_ends_are_proposed_and_other_capitals_are_left_open() -> None:
    chat = (
        "USER: Rate?\n\nASSISTANT: <functioncall> {} <|endoftext|>\n\nFUNCTION RESPONSE: 0.9\n\nASSISTANT: It is 0.9."
    )
    fields, markers = propose([{"system": "SYSTEM: You are a helper.", "chat": f"{chat}\nCRITIC: Good, very good."}])
    asked = ask([{"system": "SYSTEM: You are a helper.", "chat": f"{chat}\nCRITIC: Good, very good."}])

    assert [(name, value) for name, value, _ in fields] == [("messages", "chat"), ("system", "system")]
    assert dict(markers) == {
        "user": ("\nUSER:",),
        "assistant": ("\nASSISTANT:",),
        "tool": ("\nFUNCTION RESPONSE:",),
        "ignore": ("<|endoftext|>",),
        "???": ("\nCRITIC:",),
    }
    with pytest.raises(ValidationError, match="markers"):
        SourceConfig(path="a", **yaml.safe_load(f"{{{line_of(asked)}}}"))


@pytest.mark.parametrize(
    "row",
    [
        {"tree": "t1", "prompt": {"text": "What is rain?", "replies": [{"text": "Water."}, {"text": "Drops."}]}},
        {"id": "1", "input": "What is a sea?", "output": ["Salt water."]},
    ],
)
def test_one_text_is_no_running_text_while_others_lie_beside_it(row: dict[str, Any]) -> None:
    ((name, value, comment),), _ = propose([row])

    assert (name, value) == ("text", "???")
    assert re.match(r"one of: (prompt.text, prompt.replies|input, output\[0\]);", comment)


def test_a_placeholder_lists_every_column_but_those_that_are_rejected_by_their_names() -> None:
    row = {"question": "How deep is it?", "answer": False, "passage": "It is nine metres.", "empty": None}
    worse = dict.fromkeys(("incorrect_answers", "non_preferred", "dispreferred", "wrong", "distractor3"), "It is ten.")

    proposal, _ = propose([row | worse | {"negative": "It is eleven.", "loser": "It is twelve."}])

    assert proposal == [("prompt", "question", ""), ("completion", "???", "one of: passage, answer, empty")]


def test_tools_are_written_only_if_rows_have_them(lines_file: Callable[..., Path]) -> None:
    said = {"role": "assistant", "content": "A", "mask": 1}
    path = lines_file({"messages": [{"role": "user", "content": "Q"}, said]})

    with pytest.raises(DataError, match=r"beside `fields: \{messages: messages\}`"):
        find_columns(path, SourceConfig(path=str(path)))


PORT = [{"ask": "How deep is it?", "reply": "Nine metres deep."}, {"ask": "How far is it?", "reply": "Ten miles off."}]


def test_what_is_proposed_for_rows_inside_a_json_object_works_when_it_is_pasted(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "1", "data": PORT}))
    with pytest.raises(DataError) as refusal:
        find_columns(path, SourceConfig(path=str(path)), JSON)

    line = line_of(str(refusal.value))
    pasted = yaml.safe_load(f"{{{line.replace('prompt: ???', 'prompt: ask').replace('???', 'reply')}}}")
    found = find_columns(path, SourceConfig(path=str(path), **pasted), JSON)

    assert pasted["fields"]["rows"] == "data"
    assert found.layout is not None and found.layout.prompt == ("ask",)
    assert found.layout.rows == "data" and found.format == JSON


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"features": [{"name": "ask"}, {"name": "reply"}], "rows": [{"row": row} for row in PORT]}, "rows"),
        ({"Positive Examples": PORT[:1], "Negative Examples": [], "Some Instances": PORT}, '"Some Instances"'),
    ],
)
def test_the_list_with_the_most_objects_is_named(tmp_path: Path, value: dict[str, Any], named: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))

    note = find_columns(path, SourceConfig(path=str(path)), JSON).format.note

    assert note is not None and f"fields: {{rows: {named}, ...}}" in note


@pytest.mark.parametrize("beginning", ["", "\ufeff\n "])
def test_a_json_list_of_one_row_is_rows(tmp_path: Path, beginning: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(beginning + json.dumps(PORT[:1]))

    with pytest.raises(DataError, match="columns seen: ask, reply"):
        find_columns(path, SourceConfig(path=str(path)), JSON)
    named = find_columns(path, source_of(path, fields={"prompt": "ask", "completion": "reply"}), JSON)

    assert named.names == ("ask", "reply") and named.format == JSON


def test_one_of_two_lists_of_texts_is_not_taken_for_all_that_is_said() -> None:
    row = {"tag": "greeting", "patterns": ["Hi there you", "How are you?"], "responses": ["Hello my friend!"]}

    assert fields_of(row) == {"prompt": "???", "completion": "???"}


def test_only_a_system_that_begins_a_text_is_plainly_one() -> None:
    begun = {"log": "SYSTEM: Be kind.\nUSER: Hi there\nASSISTANT: Hello."}
    within = {"log": "USER: What does it print?\nASSISTANT: It prints\nSYSTEM: halted\nTOOL: none"}

    assert dict(propose([begun])[1])["system"] == ("\nSYSTEM:",)
    assert dict(propose([within])[1])["???"] == ("\nSYSTEM:", "\nTOOL:")


def test_messages_inside_a_json_object_are_not_proposed_as_running_text() -> None:
    row = {"conversation_id": 1, "role": "user", "message": "Hi there my friend"}

    proposal, _ = propose([row], "data")

    assert [(name, value) for name, value, _ in proposal] == [("rows", "data"), ("text", "???")]
    assert "JSON lines" in proposal[1][2]
