"""Kinds of rows that are understood by themselves, each with who says what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import DataError
from data_prep.fetch.sources import parts_of
from data_prep.read.parts import Rejected, read_part
from tests.data_prep.reading_rows import all_kept, corpus_of, read

USER, SAID = ("user", "How deep is it?"), ("assistant", "Nine metres.")
ASKED = {"role": "user", "content": USER[1]}
ANSWERED = {"role": "assistant", "content": SAID[1]}
HUMAN, GPT = {"from": "human", "value": USER[1]}, {"from": "gpt", "value": SAID[1]}
SYSTEM = ("system", "Be a pilot.")
WORSE = {"role": "assistant", "content": "No idea at all."}

KINDS = {
    "gpteacher": (
        {"instruction": "Add.", "input": "1 2", "response": "3"},
        [("user", "Add.\n\n1 2"), ("assistant", "3")],
    ),
    "dolly": (
        {"instruction": USER[1], "context": "The port of Brest.", "response": SAID[1], "category": "closed_qa"},
        [("user", f"The port of Brest.\n\n{USER[1]}"), SAID],
    ),
    "openorca": (
        {"id": "niv.242", "system_prompt": SYSTEM[1], "question": USER[1], "response": SAID[1]},
        [SYSTEM, USER, SAID],
    ),
    "openorca without": ({"system_prompt": "", "question": USER[1], "response": SAID[1]}, [USER, SAID]),
    "hh-rlhf": (
        {
            "chosen": f"\n\nHuman: {USER[1]}\n\nAssistant: {SAID[1]}\n\nHuman: Thanks\n\nAssistant: Bye.",
            "rejected": f"\n\nHuman: {USER[1]}\n\nAssistant: No idea.",
        },
        [USER, SAID, ("user", "Thanks"), ("assistant", "Bye.")],
    ),
    "ultrachat": (
        {"id": "0", "data": [USER[1], SAID[1], "Thanks", "Bye."]},
        [USER, SAID, ("user", "Thanks"), ("assistant", "Bye.")],
    ),
    "ultrachat 200k": ({"prompt": USER[1], "prompt_id": "ab12", "messages": [ASKED, ANSWERED]}, [USER, SAID]),
    "dailydialog": ({"dialog": [USER[1], SAID[1]], "act": [2, 1], "emotion": [0, 0]}, [USER, SAID]),
    "dailydialog as text": ({"dialog": str([USER[1], SAID[1]])}, [USER, SAID]),
    "lmsys": (
        {
            "conversation_id": "c1",
            "model": "vicuna-13b",
            "conversation": [ASKED, ANSWERED],
            "turn": 1,
            "language": "English",
            "openai_moderation": [{"flagged": False}],
            "redacted": False,
        },
        [USER, SAID],
    ),
    "sharegpt with system": ({"system": SYSTEM[1], "conversations": [HUMAN, GPT]}, [SYSTEM, USER, SAID]),
    "sharegpt as text": ({"id": 1, "conversations": json.dumps([HUMAN, GPT])}, [USER, SAID]),
    "alpaca with history": (
        {
            "instruction": USER[1],
            "input": "",
            "output": SAID[1],
            "system": SYSTEM[1],
            "history": [["Hi", "Ho"], ["A", "B"]],
        },
        [SYSTEM, ("user", "Hi"), ("assistant", "Ho"), ("user", "A"), ("assistant", "B"), USER, SAID],
    ),
    "alpaca of stanford": (
        {"instruction": "Add.", "input": "1 2", "output": "3", "text": "Below is ... Add. ... 1 2 ... 3"},
        [("user", "Add.\n\n1 2"), ("assistant", "3")],
    ),
    "squad": (
        {
            "id": "5733",
            "title": "Brest",
            "context": "Brest has a port.",
            "question": USER[1],
            "answers": {"text": [SAID[1], "9 m"], "answer_start": [0, 5]},
        },
        [("user", f"Brest has a port.\n\n{USER[1]}"), SAID],
    ),
    "capybara": (
        {"source": "x", "conversation": [{"input": USER[1], "output": SAID[1]}, {"input": "And?", "output": "Yes."}]},
        [USER, SAID, ("user", "And?"), ("assistant", "Yes.")],
    ),
    "platypus": ({"input": "", "output": SAID[1], "instruction": USER[1], "data_source": "m"}, [USER, SAID]),
    "metamath": (
        {"type": "MATH_Rephrased", "query": USER[1], "response": SAID[1], "original_question": "How deep?"},
        [USER, SAID],
    ),
    "codealpaca": ({"prompt": USER[1], "completion": SAID[1]}, [USER, SAID]),
    "wizardlm": ({"idx": "9", "conversations": [HUMAN, GPT]}, [USER, SAID]),
    "prompt and response": ({"prompt": USER[1], "response": SAID[1]}, [USER, SAID]),
    "problem and solution": ({"problem": USER[1], "solution": SAID[1], "level": "Level 5"}, [USER, SAID]),
    "numina": ({"source": "x", "problem": USER[1], "solution": SAID[1], "messages": [ASKED, ANSWERED]}, [USER, SAID]),
    "article and summary": ({"article": USER[1], "summary": SAID[1], "id": "1"}, [USER, SAID]),
    "capital letters": ({"Question": USER[1], "Answer": SAID[1]}, [USER, SAID]),
    "input and output": ({"input": USER[1], "output": SAID[1]}, [USER, SAID]),
    "messages by another name": ({"thread": [ASKED, ANSWERED]}, [USER, SAID]),
    "preference of strings": ({"prompt": USER[1], "chosen": SAID[1], "rejected": "No idea."}, [USER, SAID]),
    "preference, the answer alone": ({"prompt": USER[1], "chosen": [ANSWERED], "rejected": [WORSE]}, [USER, SAID]),
    "preference, both lists": ({"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [WORSE]}, [USER, SAID]),
    "ultrafeedback": (
        {
            "prompt": USER[1],
            "prompt_id": "a",
            "chosen": [ASKED, ANSWERED],
            "rejected": [ASKED, WORSE],
            "messages": [ASKED, ANSWERED],
            "score_chosen": 8.0,
            "score_rejected": 2.0,
        },
        [USER, SAID],
    ),
    "orca of preferences": (
        {"system": SYSTEM[1], "question": USER[1], "chosen": SAID[1], "rejected": "No idea."},
        [SYSTEM, USER, SAID],
    ),
    "prompt and completion as messages": ({"prompt": [ASKED], "completion": [ANSWERED]}, [USER, SAID]),
    "prompt as messages": ({"input": [ASKED], "output": SAID[1]}, [USER, SAID]),
    "hh-rlhf with prompt": (
        {"prompt": f"\n\nHuman: {USER[1]}\n\nAssistant:", "chosen": f" {SAID[1]}", "rejected": " No idea."},
        [USER, SAID],
    ),
    "history of messages": (
        {"instruction": USER[1], "output": SAID[1], "history": [{"role": "user", "content": "A"}, WORSE]},
        [("user", "A"), ("assistant", WORSE["content"]), USER, SAID],
    ),
    "kto": ({"prompt": USER[1], "completion": SAID[1], "label": True}, [USER, SAID]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_found_by_itself(lines_file: Callable[..., Path], kind: str) -> None:
    row, expected = KINDS[kind]

    assert read(lines_file(row, row)) == [expected, expected]


@pytest.mark.parametrize(
    "kind", ["lmsys", "capybara", "ultrachat", "squad", "alpaca with history", "preference, both lists"]
)
def test_a_kind_is_found_in_parquet_too(tmp_path: Path, kind: str) -> None:
    row, expected = KINDS[kind]
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "a.parquet")

    assert read(tmp_path / "a.parquet") == [expected, expected]


def test_a_conversation_in_a_cell_of_a_csv_is_opened(tmp_path: Path) -> None:
    cells = [json.dumps([ASKED, ANSWERED]), str([ASKED, ANSWERED])]
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    (tmp_path / "a.csv").write_text("id,messages\n" + "".join(f"{n},{cell}\n" for n, cell in enumerate(quoted)))

    assert read(tmp_path / "a.csv") == [[USER, SAID], [USER, SAID]]


def test_what_numpy_printed_without_commas_is_not_joined_in_silence(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("dialog\n\"['Hello there' 'Hi']\"\n\"['Hello there', 'Hi']\"\n")

    assert read(tmp_path / "a.csv")[0] == "a list without commas between its items"


@pytest.mark.parametrize("first_has_input", [False, True])
def test_an_optional_column_may_be_missing_or_empty_in_any_row(
    lines_file: Callable[..., Path], first_has_input: bool
) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "Add.", "output": "3", "input": "1 2"},
        {"instruction": "Hi", "output": "Ho"},
    ]
    rows += [{"instruction": "Hi", "output": "Ho", "input": value} for value in ("", None)]

    found = read(lines_file(*(rows if first_has_input else rows[::-1])))

    plain = [("user", "Hi"), ("assistant", "Ho")]
    assert sorted(found) == sorted([[("user", "Add.\n\n1 2"), ("assistant", "3")], plain, plain, plain])


def test_an_input_that_only_a_late_row_has_is_read(lines_file: Callable[..., Path]) -> None:
    late = {"instruction": "Add.", "input": "1 2", "output": "3"}

    found = read(lines_file(*[{"instruction": "Hi", "output": "Ho"}] * 500, late))

    assert found[-1] == [("user", "Add.\n\n1 2"), ("assistant", "3")]


@pytest.mark.parametrize(
    ("row", "lines"),
    [
        (
            {"problem": "What is 1 + 1?", "solution": "It is plainly 2.", "answer": "two of them"},
            ["{prompt: problem, completion: solution}", "{prompt: problem, completion: answer}"],
        ),
        (
            {"conversation_a": [ASKED, ANSWERED], "conversation_b": [ASKED, WORSE], "winner": "a"},
            ["{messages: conversation_a}", "{messages: conversation_b}"],
        ),
        (
            {"messages": [ASKED, ANSWERED], "question": "Something else?", "answer": "Another thing."},
            ["{messages: messages}", "{prompt: question, completion: answer}"],
        ),
        (
            {"prompt": "How deep is it?", "completion": "Nine metres.", "label": 1},
            ["{prompt: prompt, completion: completion}", "{prompt: prompt, completion: completion, label: label}"],
        ),
        (
            {"conversation_id": 1, "role": "user", "text": "Hello there, you."},
            ["{text: text}", "{role: role, content: text, group_by: conversation_id}"],
        ),
    ],
)
def test_rows_that_can_be_read_in_two_ways_are_refused_with_both_lines(
    lines_file: Callable[..., Path], row: dict[str, Any], lines: list[str]
) -> None:
    with pytest.raises(DataError, match="can be read in 2 ways") as caught:
        read(lines_file(row, row))

    for line in lines:
        assert f"`fields: {line}`" in str(caught.value)


def test_a_list_that_only_looks_like_messages_is_no_second_way_to_read_a_pair(lines_file: Callable[..., Path]) -> None:
    row = {"prompt": USER[1], "completion": SAID[1], "edits": [{"from": "draft", "value": "final"}]}

    assert read(lines_file(row)) == [[USER, SAID]]


def test_a_question_is_not_trained_without_the_choices_that_it_is_about(lines_file: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="cannot tell"):
        read(lines_file({"question": "Which of these is it?", "choices": ["a", "b"], "answer": "a"}))


def test_rows_under_the_one_key_of_a_json_file_are_found(tmp_path: Path) -> None:
    rows = [{"instruction": f"Do {n}", "output": f"Done {n}"} for n in range(3)]
    (tmp_path / "a.json").write_text(json.dumps({"version": "1.0", "data": rows}))

    found = read(tmp_path / "a.json")

    assert found == [[("user", f"Do {n}"), ("assistant", f"Done {n}")] for n in range(3)]


def test_questions_with_their_answers_in_one_json_object_are_rows_not_one_conversation(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"question": "A", "answer": "B"}] * 2}))

    assert read(tmp_path / "a.json") == [[("user", "A"), ("assistant", "B")]] * 2


def test_one_json_object_with_a_list_of_texts_may_be_either_and_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": ["one text", "another text"]}))

    with pytest.raises(DataError, match=r"`fields: \{rows: data, ...\}`, or `fields: \{messages: data\}` if it is one"):
        read(tmp_path / "a.json")


FORMATS = {
    "alpaca_en_demo.json": ("pair", 999, 0),
    "alpaca_zh_demo.json": ("pair", 1000, 0),
    "c4_demo.jsonl": ("text", 300, 0),
    "dpo_zh_demo.json": ("messages", 300, 0),
    "glaive_toolcall_en_demo.json": ("messages", 300, 0),
    "glaive_toolcall_zh_demo.json": ("messages", 300, 0),
    "identity.json": ("pair", 91, 0),
    "kto_en_demo.json": ("messages", 300, 150),
    "mllm_demo.json": ("messages", 6, 6),
    "reason_tool_use_demo_50.jsonl": ("messages", 50, 0),
    "v1_dpo_demo.jsonl": ("messages", 10, 0),
    "v1_multimodal_demo.jsonl": ("messages", 25, 25),
    "v1_sft_demo.jsonl": ("messages", 500, 0),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_formats_of_llama_factory_are_read_without_fields(test_data: Path, name: str) -> None:
    (file,) = corpus_of(test_data / "formats" / name).files

    found = list(read_part(*parts_of(0, file, 2**30)))

    assert (file.columns.shape, len(found), sum(isinstance(item, Rejected) for item in found)) == FORMATS[name]


def test_calls_and_tools_of_glaive_are_structured(test_data: Path) -> None:
    (file,) = corpus_of(test_data / "formats" / "glaive_toolcall_en_demo.json").files

    documents = [item for item in all_kept(read_part(*parts_of(0, file, 2**30))) if item.variables]

    calls = [call for item in documents for turn in item.turns for call in turn.more.get("tool_calls", ())]
    assert len(documents) > 150 and len(calls) > 150
    known = [{tool["function"]["name"] for tool in item.variables["tools"]} for item in documents]
    assert {call["function"]["name"] for call in calls} <= set().union(*known)
    assert all(isinstance(call["function"]["arguments"], dict) for call in calls)


@pytest.mark.parametrize(
    ("beside", "asked"),
    [
        ({"input": 4}, "Square this\n\n4"),
        ({"input": float("nan")}, "Square this"),
        ({"input": ["a", "b"]}, "Square this\n\na\n\nb"),
        ({"context": ["p1", "p2"]}, "p1\n\np2\n\nSquare this"),
    ],
)
def test_what_stands_beside_a_question_is_read_though_one_row_has_no_text_there(
    tmp_path: Path, beside: dict[str, Any], asked: str
) -> None:
    (name,) = beside
    rows = [{"instruction": f"Say {n}", name: f"text {n}", "output": "yes"} for n in range(9)]
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"instruction": "Square this", **beside, "output": "16"}])
    )

    found = read(path)

    assert found[-1][0] == ("user", asked)
    assert all(f"text {n}" in found[n][0][1] for n in range(9))


def test_a_pair_whose_input_cannot_be_read_is_rejected_not_trained_without_it(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n}", "input": f"text {n}", "output": "yes"} for n in range(9)]
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"instruction": "a", "input": {"b": 1}, "output": "c"}])
    )

    assert read(path)[-1] == "not text in input"
