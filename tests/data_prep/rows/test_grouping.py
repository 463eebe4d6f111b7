"""Rows that are one conversation, by group or by tree, and rows inside of one JSON value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import DataError
from data_prep.documents import Turn
from data_prep.fetch.provenance import read_document
from data_prep.fetch.sources import find_corpus, not_read, parts_of
from data_prep.read.parts import read_part
from data_prep.shards import Manifest
from tests.data_prep.reading_rows import all_kept, read, source_of

PAIR = [("user", "Hi"), ("assistant", "Ho")]


def test_rows_of_one_conversation_are_joined_wherever_they_stand(lines_file: Callable[..., Path]) -> None:
    said = [("c1", 2, "agent", "Ho"), ("c2", 10, "client", "B"), ("c1", 1, "client", "Hi"), ("c2", 9, "agent", "A")]
    rows = [
        {"conversation_id": c, "turn": n, "speaker": who, "text": text, "topic": "the port"} for c, n, who, text in said
    ]
    fields = {
        "group_by": "conversation_id",
        "order_by": "turn",
        "role": "speaker",
        "content": "text",
        "system": "topic",
    }

    found = read(lines_file(*rows, {"turn": 1, "speaker": "client", "text": "lost", "topic": ""}, b"{"), fields=fields)

    system = ("system", "the port")
    assert found == ["bad JSON", "missing column", [system, *PAIR], [system, ("assistant", "A"), ("user", "B")]]


def test_of_rows_that_are_messages_all_that_a_message_may_have_is_read_from_parquet(tmp_path: Path) -> None:
    rows = [
        {"c": 1, "role": "user", "content": "Hi", "weight": None, "reasoning": None, "n": 0},
        {"c": 1, "role": "assistant", "content": "Ho", "weight": 0, "reasoning": "Well.", "n": 1},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    corpus = find_corpus([source_of(tmp_path / "a.parquet", name="s", fields={"group_by": "c"})], {})

    (document,) = all_kept(read_part(*parts_of(0, corpus.files[0], 2**30)))

    assert document.turns == (
        Turn("user", "Hi"),
        Turn("assistant", "Ho", {"reasoning_content": "Well."}, is_trained=False),
    )
    assert not_read(corpus, "s") == []


def test_a_conversation_whose_order_is_not_told_is_rejected(lines_file: Callable[..., Path]) -> None:
    rows = [{"c": "x", "n": 1, "role": role, "content": "a"} for role in ("user", "assistant")]

    found = read(lines_file(*rows), fields={"group_by": "c", "order_by": "n"})

    assert found == ["two rows of the conversation with the same position"]


def read_in_order(lines_file: Callable[..., Path], *places: Any) -> list[Any]:
    """Return the positions of one conversation's rows as they are read, or why it is rejected."""
    rows = [{"c": "x", "t": place, "role": "user", "content": str(place)} for place in places]
    (found,) = read(lines_file(*rows), fields={"group_by": "c", "order_by": "t"})
    return [said for _, said in found] if isinstance(found, list) else [found]


@pytest.mark.parametrize(
    "places",
    [
        ("2023-01-02T09:05:00Z", "2023-01-02T09:05:00.500Z", "2023-01-02T10:06:00+01:00", "2023-01-02T09:07:00.25Z"),
        ("2023-01-02 09:05:00 UTC", "2023-01-02 09:05:00.5 UTC", "2023-01-02 10:05:00 UTC"),
        ("2023-01-02T09:05:00.1234567Z", "2023-01-02T09:05:00.1234568Z", "2023-01-02T09:05:01Z"),
        ("2023-01-02", "20230103", "2023-12-01"),
        (9, "10", 10.5, "11"),
        ("1060000000000000001", 1060000000000000002, "1060000000000000003"),
        ("msg-002", "msg-010", "msg-100"),
        ("call 7, turn 8", "call 7, turn 9"),
        ("2022/12/31 09:05", "2023/01/02 09:05", "2023/01/02 10:04"),
        ("00:00:59", "00:01:12", "01:00:00"),
    ],
)
def test_a_conversation_is_in_the_order_of_its_numbers_moments_or_texts_of_one_form(
    lines_file: Callable[..., Path], places: tuple[Any, ...]
) -> None:
    assert read_in_order(lines_file, *places[::-1]) == list(map(str, places))
    assert read_in_order(lines_file, *places[1:], places[0]) == list(map(str, places))


@pytest.mark.parametrize(
    ("places", "found"),
    [
        (("1/2/2023 9:05 AM", "1/2/2023 10:05 AM"), "texts"),
        (("01/02/2023 12:05 AM", "01/02/2023 01:05 AM"), "texts"),
        (("12/31/2022", "01/01/2023"), "texts"),
        (("12 AM", "01 AM"), "texts"),
        (("msg-2", "msg-10"), "texts"),
        (("first", "second"), "texts"),
        (("2023/01/02 PM 12:59", "2023/01/02 PM 01:01"), "texts"),
        ((1, "2a"), "numbers and texts"),
        (("2023-01-02T09:05:00Z", "2023-01-02T09:06:00"), "times with and without an offset"),
        (("2023-01-02", "2023-01-02T09:06:00"), "dates with and without a time"),
    ],
)
def test_a_conversation_whose_order_is_not_certain_is_rejected_with_what_to_do(
    lines_file: Callable[..., Path], places: tuple[Any, ...], found: str
) -> None:
    (reason,) = read_in_order(lines_file, *places)

    assert reason.startswith(f"order_by holds {found}") and "drop `order_by` if the file is in order" in reason


@pytest.mark.parametrize("place", [None, "", float("nan")])
def test_a_row_without_a_position_has_no_place_in_its_conversation(
    lines_file: Callable[..., Path], place: float | str | None
) -> None:
    assert read_in_order(lines_file, 1, place) == ["a row of the conversation without its position"]


def test_a_conversation_that_was_joined_is_found_again_by_its_number(
    tmp_path: Path, lines_file: Callable[..., Path]
) -> None:
    rows = [{"c": c, "role": role, "content": f"{c} {role}"} for role in ("user", "assistant") for c in ("x", "y")]
    corpus = find_corpus([source_of(lines_file(*rows), fields={"group_by": "c"})], {})
    values: dict[str, Any] = dict.fromkeys(Manifest.__dataclass_fields__) | {"files": [corpus.files[0].info]}

    shown = json.loads(read_document(tmp_path, Manifest(**values), 0, 1))

    assert [row["content"] for row in shown["rows"]] == ["y user", "y assistant"]


def test_a_file_that_would_not_fit_into_memory_is_refused_before_it_is_read(
    lines_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.read.column_choice.JOINED_BYTES", 10)

    with pytest.raises(DataError, match="held in memory"):
        read(lines_file({"c": "x", "role": "user", "content": "a"}), fields={"group_by": "c"})


def test_ids_are_the_same_whether_numbers_or_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,up,role,content\n1,,user,Hi\n2,1.0,assistant,Ho\n")

    assert read(tmp_path / "a.csv", fields={"id": "id", "parent_id": "up"}) == [PAIR]


def test_trees_with_a_circle_or_a_name_twice_end(lines_file: Callable[..., Path]) -> None:
    rows = [
        {"id": a, "up": b, "role": "user", "content": a}
        for a, b in (("a", "b"), ("b", "a"), ("r", None), ("s", "r"), ("s", "s"))
    ]

    found = read(lines_file(*rows), fields={"id": "id", "parent_id": "up"}, paths="all")

    assert found == ["duplicate id", "no answer in the tree", *["not reachable from a root message"] * 2]


def test_rows_inside_of_a_json_value_are_read_from_their_path(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"meta": [{"x": 1}], "set": {"rows": [{"q": "Hi", "a": "Ho"}, 5]}}))

    found = read(tmp_path / "a.json", fields={"rows": "set.rows", "prompt": "q", "completion": "a"})

    assert found == [PAIR, "not a JSON object"]


def test_open_assistants_trees_are_read_by_their_best_answers(lines_file: Callable[..., Path]) -> None:
    def message(name: str, parent: str | None, role: str, rank: int | None = None) -> dict[str, Any]:
        return {
            "message_id": name,
            "parent_id": parent,
            "role": role,
            "text": f"says {name}",
            "rank": rank,
            "lang": "en",
        }

    path = lines_file(
        message("a", None, "prompter"),
        message("b", "a", "assistant", 1),
        message("c", "a", "assistant", 0),
        message("e", "d", "assistant", 0),
        message("d", "c", "prompter"),
        message("f", "b", "prompter"),
        message("x", "gone", "assistant", 0),
        message("y", None, "prompter"),
    )

    best = [("user", "says a"), ("assistant", "says c"), ("user", "says d"), ("assistant", "says e")]
    lost = ["no answer in the tree", "not reachable from a root message"]
    assert read(path) == [best, *lost]
    other = [("user", "says a"), ("assistant", "says b")]
    fields = {"id": "message_id", "parent_id": "parent_id", "role": "role", "content": "text", "rank": "rank"}
    assert read(path, fields=fields, paths="all") == [best, other, *lost]
