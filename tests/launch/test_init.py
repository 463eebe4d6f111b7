"""What `shardline init` finds out by looking at the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config_loading import load_config
from cluster.errors import ConfigError
from launch.config import RunConfig
from launch.data.init import write_init

HH = {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def initialized(tmp_path: Path, data: Path, kind: str | None = None) -> str:
    output = tmp_path / "run.yaml"
    write_init(kind, str(data), None, output)
    return output.read_text()


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"text": "a"}, "files of running text"),
        ({"instruction": "a", "response": "b"}, '"prompt": "..."'),
        (HH, '"messages": ['),
        ({"conversations": [{"from": "human", "value": "a"}]}, '"messages": ['),
    ],
)
def test_the_kind_is_found_and_nothing_is_proposed_where_nothing_is_needed(
    tmp_path: Path, row: dict[str, Any], example: str
) -> None:
    text = initialized(tmp_path, lines(tmp_path / "a.jsonl", row))

    assert example in text and "fields" not in text
    assert load_config(RunConfig, tmp_path / "run.yaml")


def test_open_columns_are_placeholders_that_a_run_refuses(tmp_path: Path) -> None:
    data = lines(tmp_path / "a.jsonl", {"title": "A day at the port", "body": "It was a fine day there."})

    text = initialized(tmp_path, data)

    assert "        prompt: ???" in text and "# one of: title, body" in text
    with pytest.raises(ConfigError, match=r"fields\.prompt.*\?\?\? is a placeholder; write the name of a column"):
        load_config(RunConfig, tmp_path / "run.yaml")


def test_a_parquet_file_in_a_folder_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    row = {"talk": [{"speaker": "human", "text": "Hi"}, {"speaker": "gpt", "text": "Ho"}], "id": "x"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "data" / "a.parquet")

    initialized(tmp_path, tmp_path / "data")

    (source,) = load_config(RunConfig, tmp_path / "run.yaml").data.sources
    assert (source.fields.messages, source.fields.role, source.fields.content) == ("talk", "speaker", "text")


def test_ways_to_read_a_csv_stand_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("problem,solution,answer\nWhat is 1 + 1?,It is plainly 2.,two of them\n")

    text = initialized(tmp_path, tmp_path / "a.csv")

    assert "#   fields: {prompt: problem, completion: solution}" in text
    with pytest.raises(ConfigError, match="is a placeholder"):
        load_config(RunConfig, tmp_path / "run.yaml")


def test_those_whom_nobody_knows_are_asked_about(tmp_path: Path) -> None:
    text = initialized(tmp_path, lines(tmp_path / "a.jsonl", {"messages": [{"role": "Alice", "content": "Hi"}]}))

    assert "      roles:\n        Alice: ???" in text
    with pytest.raises(ConfigError, match=r"roles\.Alice: expected 'system', 'user'"):
        load_config(RunConfig, tmp_path / "run.yaml")


def test_a_kind_is_asked_for_where_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"the kind of your data cannot be detected.*init text \| pairs \| conversations"
    ):
        initialized(tmp_path, tmp_path / "absent")
    assert "running text" in initialized(tmp_path, tmp_path / "absent", "text")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("Question;Answer\nHow deep?;Nine.\n", '"prompt": "..."'),
        ("ask|reply\nHow deep is it?|Nine metres deep.\n", "one of: ask, reply\n"),
        ("\ufeffsep=;\nFrage;Antwort\nWie tief ist es?;Neun Meter tief.\n", "one of: Frage, Antwort\n"),
    ],
)
def test_a_table_is_looked_at_as_it_is_laid_out(tmp_path: Path, data: str, expected: str) -> None:
    (tmp_path / "a.csv").write_text(data)

    text = initialized(tmp_path, tmp_path / "a.csv")

    assert expected in text and ";" not in text.partition("sources:")[2].partition("row_tokens")[0].replace("; or", "")


def test_a_table_in_another_encoding_has_its_encoding_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("question;answer\nWie groß?;Fünf Meter.\n".encode("cp1252"))

    text = initialized(tmp_path, tmp_path / "a.csv")

    assert "      encoding: ???  # such as cp1252\n" in text and '"prompt": "..."' in text
    with pytest.raises(ConfigError, match="encoding"):
        load_config(RunConfig, tmp_path / "run.yaml")


@pytest.mark.parametrize("key", ["data", "items"])
def test_rows_inside_a_json_object_are_proposed_with_where_they_lie(tmp_path: Path, key: str) -> None:
    value = {"n": 1, key: [{"ask": "How deep is it?", "reply": "Nine metres deep."}] * 2, "by": [{"name": "x"}][:0]}
    (tmp_path / "a.json").write_text(json.dumps(value))

    text = initialized(tmp_path, tmp_path / "a.json")

    assert f"      fields:\n        rows: {key}\n        prompt: ???" in text


def test_a_line_that_begins_like_a_row_is_told_of_in_a_comment_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"Do you ship\nabroad?",Yes we do ship.\nHow far is it?,It is ten miles.\n')

    text = initialized(tmp_path, tmp_path / "a.csv")

    assert "# Its first line is no header but a row (Do you ship abroad? | " in text
    with pytest.raises(ConfigError, match="is a placeholder"):
        load_config(RunConfig, tmp_path / "run.yaml")
