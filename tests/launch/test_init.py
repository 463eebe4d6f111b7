"""What `shardline init` finds out by looking at the data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from cluster.config_loading import load_config, validate
from cluster.errors import ConfigError
from data_prep.prepare import prepare
from data_prep.preview.document_sizes import DocumentSizes
from launch.config import RunConfig
from launch.data.init import write_init
from launch.first_run.choices import choose
from launch.first_run.facts import DataFacts, Machine, ModelFacts
from launch.first_run.run_yaml import as_yaml

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
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, '"messages": ['),
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


@pytest.mark.parametrize("kind", ["pairs", "conversations"])
def test_running_text_is_not_taken_for_what_it_is_called(tmp_path: Path, kind: str) -> None:
    (tmp_path / "chat.txt").write_text("Anna: Is it deep?\nBen: Nine metres.\n" * 20)
    with pytest.raises(ConfigError, match=f"holds running text, in which `prepare` finds no {kind}; make rows of it"):
        initialized(tmp_path, tmp_path / "chat.txt", kind)


def test_a_kind_is_asked_for_where_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"there is no file or folder of this name.*init text \| pairs \| conversations"
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


def facts_of(kind: str, documents: int, length: int) -> DataFacts:
    sizes = DocumentSizes(documents=documents, tokens=float(documents * length), lengths=np.full(50, length))
    return DataFacts(kind=kind, bytes=4 * documents * length, sizes=sizes)


@given(
    kind=st.sampled_from(["text", "pairs", "conversations"]),
    documents=st.integers(1, 10**7),
    length=st.integers(1, 10**5),
    parameters=st.none() | st.integers(10**5, 10**12),
    positions=st.none() | st.integers(16, 10**6),
    ranks=st.integers(1, 64),
    lora=st.booleans(),
)
def test_the_numbers_for_any_data_model_and_machine_are_a_valid_run(
    kind: str, documents: int, length: int, parameters: int | None, positions: int | None, ranks: int, lora: bool
) -> None:
    facts = facts_of(kind, documents, length)
    model = ModelFacts(name="m", folder=Path("m"), parameters=parameters, positions=positions)
    for origin in (model, None):
        it = choose(facts, origin, Machine(ranks, ranks), lora=lora and origin is not None)
        text = as_yaml(Path("run.yaml"), "data", (), facts, origin, it)
        run = validate(RunConfig, YAML(typ="safe", pure=True).load(text), source="run.yaml")
        assert run.train.global_batch_rows % (ranks * run.train.micro_batch_rows) == 0
        assert run.data.row_tokens <= ((origin and origin.positions) or 10**9)


def test_few_rows_get_smaller_batches_then_more_epochs_and_at_most_ten() -> None:
    chosen = {n: choose(facts_of("pairs", n, 128), None, Machine(1, 1), lora=False) for n in (3, 100, 1000, 10**6)}
    assert [(it.batch.value, it.epochs.value) for it in chosen.values()] == [(4, 10), (4, 9), (8, 3), (128, 1)]
    assert "more than 10 epochs over so few rows would mostly memorize them" in chosen[3].epochs.reason


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_run_computes_in_what_the_machine_is_quick_in(has_bf16: bool, precision: str) -> None:
    facts = facts_of("pairs", 100, 128)
    it = choose(facts, None, Machine(0, 2, has_bf16=has_bf16), lora=False)
    text = as_yaml(Path("run.yaml"), "data", (), facts, None, it)
    assert validate(RunConfig, YAML(typ="safe", pure=True).load(text), source="run.yaml").train.precision == precision


def test_what_is_longer_than_a_row_is_said() -> None:
    lengths = np.array([100] * 96 + [5000] * 4)
    facts = DataFacts(kind="pairs", bytes=1, sizes=DocumentSizes(documents=100, tokens=29600, lengths=lengths))
    it = choose(facts, None, Machine(1, 1), lora=False)
    assert it.row_tokens.value == 128
    assert "4.0% are longer and are cut" in it.row_tokens.reason


def test_lora_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adapters need a model"):
        write_init("text", "data", None, tmp_path / "run.yaml", lora=True)


def test_pairs_become_a_chat_and_are_measured_as_they_will_be_prepared(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"question": f"How deep is lake {n}?", "answer": f"It is {n} metres deep."} for n in range(60)]
    data = lines(tmp_path / "a.jsonl", *rows)

    said = write_init(None, str(data), str(tiny_model), tmp_path / "run.yaml")
    config = load_config(RunConfig, tmp_path / "run.yaml")
    assert config.data.chat_template == "plain"
    counted = prepare(config.data, tmp_path / "shards", str(tiny_model), seed=0).documents[str(data)]

    told = re.search(r"about (\d+) documents and ([\d,]+) tokens", said)
    assert told is not None and int(told[1]) == counted["kept"]
    assert int(told[2].replace(",", "")) == pytest.approx(counted["tokens"], rel=0.02)
