"""What a row says: roles, calls, reasoning, flags, what stands before a question."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError
from data_prep.config import SourceConfig
from data_prep.documents import Turn
from data_prep.fetch.sources import find_corpus, parts_of
from data_prep.read.parts import Document, Rejected, read_part
from tests.data_prep.reading_rows import all_kept

ASK, SAY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}


def documents(lines_file: Callable[..., Path], *rows: Any, **source: Any) -> list[Document | Rejected]:
    (file,) = find_corpus([SourceConfig(path=str(lines_file(*rows)), **source)], {}).files
    (part,) = parts_of(0, file, 2**30)
    return list(read_part(part))


def turns(lines_file: Callable[..., Path], *rows: Any, **source: Any) -> list[Any]:
    """Return who says what in each row, or why it is rejected."""
    found = documents(lines_file, *rows, **source)
    return [
        [(turn.role, turn.text) for turn in item.turns] if isinstance(item, Document) else item.reason for item in found
    ]


def turn_of(lines_file: Callable[..., Path], message: Any) -> Turn:
    """Return the turn of a message that answers a question."""
    (document,) = all_kept(documents(lines_file, {"messages": [ASK, message]}))
    return document.turns[1]


@pytest.mark.parametrize(
    "name", ["human", "Human", "USER", "prompter", "customer", " client ", "Questioner", "instruction"]
)
def test_those_who_ask_are_the_user_whatever_they_are_called(lines_file: Callable[..., Path], name: str) -> None:
    assert turns(lines_file, {"messages": [{**ASK, "role": name}, SAY]}) == [[("user", "Hi"), ("assistant", "Ho")]]


@pytest.mark.parametrize(
    "name", ["gpt", "GPT", "model", "ai", "Bot", "chatgpt", "agent", "chatbot", "Claude", "answer"]
)
def test_those_who_answer_are_the_assistant_whatever_they_are_called(
    lines_file: Callable[..., Path], name: str
) -> None:
    assert turns(lines_file, {"messages": [ASK, {**SAY, "role": name}]}) == [[("user", "Hi"), ("assistant", "Ho")]]


@pytest.mark.parametrize("name", ["tool", "function", "observation", "tool_response", "ipython"])
def test_what_a_tool_returns_is_the_tools(lines_file: Callable[..., Path], name: str) -> None:
    assert turn_of(lines_file, {"role": name, "content": "3"}) == Turn("tool", "3")


def test_a_developer_is_the_system(lines_file: Callable[..., Path]) -> None:
    assert turns(lines_file, {"messages": [{"role": "developer", "content": "Be kind."}]}) == [[("system", "Be kind.")]]


def test_who_is_not_known_stops_the_run_with_the_line_to_write(lines_file: Callable[..., Path]) -> None:
    row = {"messages": [{"role": "Alice", "content": "Hi"}, {"role": "Dr. Bob", "content": "Ho"}]}

    with pytest.raises(DataError, match=r"'Alice', 'Dr\. Bob'.*`roles: \{Alice: user, \"Dr\. Bob\": assistant\}`"):
        turns(lines_file, row)

    told = turns(lines_file, row, roles={"alice": "user", "Dr. Bob": "assistant"})
    assert told == [[("user", "Hi"), ("assistant", "Ho")]]


def test_who_is_not_known_beside_known_ones_is_left_open(lines_file: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"`roles: \{narrator: \?\?\?\}`"):
        turns(lines_file, {"messages": [ASK, {"role": "narrator", "content": "He said:"}, SAY]})


def test_a_row_beyond_the_sample_in_which_nobody_knows_who_speaks_is_a_counted_rejection(
    lines_file: Callable[..., Path],
) -> None:
    odd = {"messages": [{"role": "Alice", "content": "Hi"}]}

    found = turns(lines_file, *[{"messages": [ASK, SAY]}] * 205, odd, *[{"messages": [ASK, SAY]}] * 800)

    assert found[205] == "unknown role" and len(found) == 1006


@pytest.mark.parametrize(
    "message",
    [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{**CALL, "function": {"name": "add", "arguments": '{"a": 1}'}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": {"a": 1}}]},
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"role": "tool_call", "content": '{"name": "add", "arguments": {"a": 1}}'},
    ],
)
def test_a_tool_call_of_any_form_has_its_arguments_parsed(
    lines_file: Callable[..., Path], message: dict[str, Any]
) -> None:
    assert turn_of(lines_file, message) == Turn("assistant", "", {"content": None, "tool_calls": [CALL]})


def test_a_call_keeps_its_id_and_its_result_the_id_and_name(lines_file: Callable[..., Path]) -> None:
    call = {"id": "c1", **CALL}
    row = {
        "messages": [
            ASK,
            {**SAY, "tool_calls": [call]},
            {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"},
        ]
    }

    (document,) = all_kept(documents(lines_file, row))

    assert document.turns[1] == Turn("assistant", "Ho", {"tool_calls": [call]})
    assert document.turns[2] == Turn("tool", "3", {"tool_call_id": "c1", "name": "add"})


def test_a_call_that_is_written_into_the_text_stays_text(lines_file: Callable[..., Path]) -> None:
    text = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'

    assert turn_of(lines_file, {"role": "assistant", "content": text}) == Turn("assistant", text)


@pytest.mark.parametrize(
    "call", [{"arguments": {}}, {"name": "add", "arguments": "[1"}, {"name": "add", "arguments": [1]}, 5]
)
def test_a_call_that_nobody_could_make_is_rejected(lines_file: Callable[..., Path], call: dict[str, Any] | int) -> None:
    found = turns(lines_file, {"messages": [ASK, {**SAY, "tool_calls": [call]}]})

    assert found == ["a tool call without a name, or whose arguments are not a JSON object"]


@pytest.mark.parametrize(
    "message",
    [
        {**SAY, "reasoning_content": "Well."},
        {**SAY, "reasoning": "Well."},
        {**SAY, "thinking": "Well."},
        {"role": "assistant", "content": [{"type": "reasoning", "value": "Well."}, {"type": "text", "value": "Ho"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Well."}, {"type": "text", "text": "Ho"}]},
    ],
)
def test_reasoning_of_any_form_stands_apart_from_what_is_said(
    lines_file: Callable[..., Path], message: dict[str, Any]
) -> None:
    assert turn_of(lines_file, message) == Turn("assistant", "Ho", {"reasoning_content": "Well."})


def test_parts_of_a_message_are_joined_as_templates_write_them(lines_file: Callable[..., Path]) -> None:
    parts = [
        {"type": "text", "text": "a "},
        {"type": "text", "value": "b"},
        {"type": "tool_call", "value": json.dumps(CALL["function"])},
    ]

    assert turn_of(lines_file, {"role": "assistant", "content": parts}) == Turn(
        "assistant", "a b", {"tool_calls": [CALL]}
    )


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]], [json.dumps(TOOL)]])
def test_tools_of_any_form_are_handed_to_the_template_in_the_form_of_servers(
    lines_file: Callable[..., Path], tools: list[Any] | str
) -> None:
    (document,) = all_kept(documents(lines_file, {"messages": [ASK, SAY], "tools": tools}))

    assert document.variables == {"tools": [TOOL]}


@pytest.mark.parametrize("tools", [None, "", "[]", []])
def test_no_tools_are_no_variable(lines_file: Callable[..., Path], tools: str | None) -> None:
    (document,) = all_kept(documents(lines_file, {"messages": [ASK, SAY], "tools": tools}))

    assert document.variables == {}


def test_what_a_row_sets_for_the_template_is_handed_on(lines_file: Callable[..., Path]) -> None:
    rows = [
        {"messages": [ASK, SAY], "chat_template_kwargs": '{"enable_thinking": true, "lang": "en"}'},
        {"messages": [ASK, SAY], "enable_thinking": False},
        {"messages": [ASK, SAY], "enable_thinking": "perhaps"},
    ]

    first, second, third = documents(lines_file, *rows)

    assert isinstance(first, Document) and first.variables == {"enable_thinking": True, "lang": "en"}
    assert isinstance(second, Document) and second.variables == {"enable_thinking": False}
    assert isinstance(third, Rejected) and third.reason == "enable_thinking is neither true nor false"


@pytest.mark.parametrize("key", ["weight", "train", "training", "trainable", "loss", "loss_weight", "loss_mask"])
def test_a_turn_that_is_marked_as_not_to_be_learnt_says_so(lines_file: Callable[..., Path], key: str) -> None:
    for value, expected in ((0, False), (1, True), (False, False), (1.0, True), (None, None)):
        assert turn_of(lines_file, {**SAY, key: value}).is_trained is expected


@pytest.mark.parametrize("value", [0.5, "1", 2, [1]])
def test_a_weight_that_is_neither_0_nor_1_is_rejected(lines_file: Callable[..., Path], value: Any) -> None:
    found = turns(lines_file, {"messages": [ASK, {**SAY, "weight": value}]})

    assert found == ["a turn's weight, train or loss is neither 0 nor 1"]


@pytest.mark.parametrize(
    "message",
    [
        {**SAY, "train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]},
        {**SAY, "content": [{"type": "text", "text": "a", "train": False}, {"type": "text", "text": "b"}]},
    ],
)
def test_a_turn_of_which_only_parts_are_trained_is_rejected(
    lines_file: Callable[..., Path], message: dict[str, Any]
) -> None:
    assert turns(lines_file, {"messages": [ASK, message]}) == ["a turn that is only partly trained"]


def test_flags_that_contradict_each_other_are_rejected(lines_file: Callable[..., Path]) -> None:
    found = turns(lines_file, {"messages": [ASK, {**SAY, "weight": 0, "train": True}]})

    assert found == ["a turn's weight, train and loss contradict each other"]


def test_a_mask_is_asked_about_and_then_understood(lines_file: Callable[..., Path]) -> None:
    row = {"messages": [ASK, {**SAY, "mask": 1}]}

    with pytest.raises(DataError, match=r"`masked: mask`.*`train: mask`"):
        documents(lines_file, row)

    for key, trained in (("masked", False), ("train", True)):
        (document,) = all_kept(documents(lines_file, row, fields={"messages": "messages", key: "mask"}))
        assert document.turns[1].is_trained is trained


def test_a_system_text_stands_first_and_a_conversations_own_beside_it(lines_file: Callable[..., Path]) -> None:
    own = {"role": "system", "content": "Be short."}
    rows = [
        {"system": text, "messages": [*first, ASK]}
        for text, first in (("Be kind.", []), ("Be kind.", [own]), ("", [own]))
    ]

    found = turns(lines_file, *rows, {"system": "Be short.", "messages": [own, ASK]})

    asked = ("user", "Hi")
    assert [dialogue[:-1] for dialogue in found] == [
        [("system", "Be kind.")],
        [("system", "Be kind.\n\nBe short.")],
        [("system", "Be short.")],
        [("system", "Be short.")],
    ]
    assert all(dialogue[-1] == asked for dialogue in found)


def test_a_context_stands_before_the_first_question_of_a_conversation(lines_file: Callable[..., Path]) -> None:
    own = {"role": "system", "content": "Be short."}

    found = turns(lines_file, {"context": "A port.", "messages": [own, ASK, SAY]})

    assert found == [[("system", "Be short."), ("user", "A port.\n\nHi"), ("assistant", "Ho")]]


def test_a_history_may_be_empty_or_json_and_one_that_is_neither_is_rejected(lines_file: Callable[..., Path]) -> None:
    row = {"instruction": "Hi", "output": "Ho"}

    found = turns(
        lines_file, *({**row, "history": value} for value in ([], None, "", '[["A", "B"]]', "gossip", [["A"]]))
    )

    said = [("user", "Hi"), ("assistant", "Ho")]
    assert found[:3] == [said] * 3
    assert found[3] == [("user", "A"), ("assistant", "B"), *said]
    assert found[4:] == ["not a list of role and content"] * 2


def test_an_answer_marked_as_unwanted_and_a_row_with_a_picture_are_rejected(lines_file: Callable[..., Path]) -> None:
    shown = [{"role": "user", "content": [{"type": "image_url", "value": "a.jpg"}]}]

    found = turns(
        lines_file,
        {"messages": [ASK, SAY], "label": True},
        {"messages": [ASK, SAY], "label": False},
        {"messages": [ASK, SAY], "label": True, "images": ["a.jpg"]},
        {"messages": shown, "label": True},
    )

    media = "needs an image, audio or video"
    assert found[1:] == ["not wanted, by its label", media, media]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Ho"}, "rejected": {}},
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": "Ho", "rejected": "No"},
        {"prompt": "Hi", "chosen": [ASK, SAY], "rejected": []},
    ],
)
def test_of_a_preference_pair_the_better_answer_is_learnt(lines_file: Callable[..., Path], row: dict[str, Any]) -> None:
    assert turns(lines_file, row) == [[("user", "Hi"), ("assistant", "Ho")]]


@pytest.mark.parametrize("name", ["Answer.sentence{}", "turn_{}", "utterance {}", "Message{}"])
def test_numbered_columns_that_are_called_something_said_are_a_dialogue(
    lines_file: Callable[..., Path], name: str
) -> None:
    row = {"id": "x", **{name.format(n): f"said {n}" for n in (1, 10, *range(2, 10))}}

    (dialogue,) = turns(lines_file, row)

    assert dialogue == [(("user", "assistant")[(n - 1) % 2], f"said {n}") for n in range(1, 11)]


@pytest.mark.parametrize("row", [{"turn1": "a", "turn2": " ", "turn3": "c"}, {"dialog": ["a", "", "c"]}])
def test_an_empty_turn_between_others_is_rejected_for_nobody_knows_who_continues(
    lines_file: Callable[..., Path], row: dict[str, Any]
) -> None:
    assert turns(lines_file, row) == ["an empty turn between others"]


@pytest.mark.parametrize(
    "names", [("sentence1", "sentence2"), ("turn1", "turn2", "turn4"), ("turn1", "turn2", "turn3", "message1")]
)
def test_columns_that_may_be_something_else_are_asked_for(
    lines_file: Callable[..., Path], names: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match="cannot tell what its columns are"):
        turns(lines_file, dict.fromkeys(names, "some text"))
