from __future__ import annotations

import json

import pytest

from cluster.errors import DataError
from data_prep.config import SourceConfig
from data_prep.documents import Rejected, find_columns, read_part
from data_prep.sources import find_corpus, parts_of

CALL = '{"name": "add", "arguments": {"a": 1}}'


def turns(lines_file, *rows, **source):
    """Return who says what in each row, or why it is rejected."""
    path = lines_file(*rows)
    (file,) = find_corpus([SourceConfig(path=str(path), **source)], {}).files
    (part,) = parts_of(0, file, 2**30)
    return [
        item.reason if isinstance(item, Rejected) else [(turn.role, turn.text) for turn in item.turns]
        for item in read_part(part)
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, [("user", "Add.\n\n1 2"), ("assistant", "3")]),
        ({"instruction": "Hi", "input": "", "output": "Ho"}, [("user", "Hi"), ("assistant", "Ho")]),
        ({"instruction": "Hi", "output": "Ho", "text": "all"}, [("user", "Hi"), ("assistant", "Ho")]),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
            [("user", "Hi"), ("assistant", "Ho")],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
            [("user", "Hi")],
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"function": json.loads(CALL)}]}]},
            [("assistant", f"<tool_call>\n{CALL}\n</tool_call>")],
        ),
        (
            {"conversations": [{"from": "function_call", "value": CALL}, {"from": "observation", "value": "1"}]},
            [("assistant", f"<tool_call>\n{CALL}\n</tool_call>"), ("tool", "1")],
        ),
        (
            {"messages": [{"role": "system", "content": "Be kind."}], "tools": "[add]"},
            [("system", "Be kind.\n\nTools:\n[add]")],
        ),
    ],
)
def test_a_row_becomes_who_says_what(lines_file, row, expected):
    assert turns(lines_file, row) == [expected]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Ho", "rejected": "No"},
        {"prompt": "Hi", "completion": "Ho", "label": True},
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Ho"}, "rejected": {}},
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": "Ho", "rejected": "No"},
        {
            "prompt": "Hi",
            "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
            "rejected": [],
        },
    ],
)
def test_of_a_preference_pair_the_better_answer_is_learnt(lines_file, row):
    assert turns(lines_file, row) == [[("user", "Hi"), ("assistant", "Ho")]]


def test_an_answer_marked_as_unwanted_and_a_row_with_a_picture_are_rejected(lines_file):
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    shown = [{"role": "user", "content": [{"type": "image_url", "value": "a.jpg"}]}]

    found = turns(
        lines_file,
        {"messages": said, "label": True},
        {"messages": said, "label": False},
        {"messages": said, "label": True, "images": ["a.jpg"]},
        {"messages": shown, "label": True},
    )

    media = "needs an image, audio or video"
    assert found[1:] == ["label says it is not wanted", media, media]


def test_columns_of_one_pattern_are_a_dialogue_in_the_order_of_their_numbers(lines_file):
    row = {f"line{n}": f"said {n}" if n < 12 else "" for n in (10, 11, 12, *range(1, 10))}

    (dialogue,) = turns(lines_file, row, fields={"messages": "line*"})

    assert dialogue == [(("user", "assistant")[(n - 1) % 2], f"said {n}") for n in range(1, 12)]


def test_numbered_columns_are_proposed_as_a_dialogue(lines_file):
    with pytest.raises(Exception, match=r"`fields: \{messages: line\*\}`"):
        find_columns(lines_file({"id": "x", "line1": "a", "line2": "b", "line3": "c"}), "rows", {})


@pytest.mark.parametrize("name", ["Answer.sentence{}", "turn_{}", "utterance {}", "Message{}"])
def test_numbered_columns_that_are_called_something_said_are_a_dialogue(lines_file, name):
    row = {"id": "x", **{name.format(n): f"said {n}" for n in (1, 10, *range(2, 10))}}

    (dialogue,) = turns(lines_file, row)

    assert dialogue == [(("user", "assistant")[(n - 1) % 2], f"said {n}") for n in range(1, 11)]


@pytest.mark.parametrize(
    "names", [("sentence1", "sentence2"), ("turn1", "turn2", "turn4"), ("turn1", "turn2", "turn3", "message1")]
)
def test_columns_that_may_be_something_else_are_asked_for(lines_file, names):
    with pytest.raises(DataError, match="cannot tell what its columns are"):
        find_columns(lines_file(dict.fromkeys(names, "text")), "rows", {})
