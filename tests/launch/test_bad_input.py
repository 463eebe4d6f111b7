"""What a person can get wrong ends with exit code 2, one clear line, and nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from data_prep.shards import read_manifest
from data_prep.shards.writing import write_manifest
from launch.__main__ import main
from launch.saved_config import load_run

Command = Callable[..., Any]  # returns a Result: see conftest.py
RESULTS = ("manifest.json", "checkpoints", "metrics.jsonl", "export", "evaluation.json", "report.html")
PAIR = {"prompt": "What ends?", "completion": "A run that ends is worth more."}
UNANSWERED = {"messages": [{"role": "user", "content": "Is anybody there?"}]}
ANSWERED = {"messages": [*UNANSWERED["messages"], {"role": "assistant", "content": "Yes."}]}


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[..., Path]:
    """Write a run that prepares `source` and trains a new model on it."""

    def write(source: Path) -> Path:
        values = {
            "name": "bad",
            "folder": str(tmp_path / "run"),
            "data": {"sources": [{"path": str(source)}], "row_tokens": 64, "tokenizer": {"train": {"vocab_size": 512}}},
            "model": {"new": {"config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}}},
        }
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps(values))
        return path

    return write


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def results_in(folder: Path) -> list[str]:
    return [name for name in RESULTS if any(folder.rglob(name))]


@pytest.mark.parametrize("verb", ["check", "prepare", "train", "export", "evaluate", "generate", "report", "status"])
def test_every_verb_refuses_an_unknown_key_and_names_the_nearest(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command, verb: str
) -> None:
    result = shardline(verb, run_yaml(tmp_path), "-o", "train.learning_rat=1")
    result.assert_refused("train.learning_rat: unknown key; did you mean 'learning_rate'?")
    assert results_in(tmp_path) == []


def test_a_value_of_the_wrong_type_is_told_what_is_accepted(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command
) -> None:
    result = shardline("check", run_yaml(tmp_path), "-o", "train.steps=many", "-o", "train.precision=fp8")
    result.assert_refused("2 problems", "train.steps: expected a valid integer, got 'many'", "'bf16' or 'fp32'")


@pytest.mark.parametrize("verb", ["check", "prepare", "train", "status", "inspect"])
def test_a_run_that_is_not_there_is_no_crash(tmp_path: Path, shardline: Command, verb: str) -> None:
    step = ["--step", "1"] if verb == "inspect" else []
    shardline(verb, tmp_path / "run.yaml", *step).assert_refused("run.yaml: no such file")
    shardline(verb, tmp_path, *step).assert_refused("config.yaml: no such file")


def test_a_yaml_that_is_no_yaml_names_its_line(tmp_path: Path, shardline: Command) -> None:
    (tmp_path / "run.yaml").write_text("name: a\ndata: {sources: ]}\nmodel: {}\n")
    shardline("check", tmp_path / "run.yaml").assert_refused("run.yaml:2")


def test_a_source_that_is_not_there_is_named(tmp_path: Path, fresh: Callable[[Path], Path], shardline: Command) -> None:
    result = shardline("prepare", fresh(tmp_path / "corpus"))
    result.assert_refused(str(tmp_path / "corpus"))
    assert results_in(tmp_path) == []


def test_an_empty_folder_has_no_document(tmp_path: Path, fresh: Callable[[Path], Path], shardline: Command) -> None:
    (tmp_path / "corpus").mkdir()
    result = shardline("prepare", fresh(tmp_path / "corpus"))
    result.assert_refused(str(tmp_path / "corpus"))
    assert results_in(tmp_path) == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "the corpus is empty"),
        ([""], "rows.jsonl"),
        (["", " "], "rows.jsonl"),
        (['{"prompt": "half'], "rows.jsonl"),
    ],
)
def test_a_jsonl_without_a_document_is_refused(
    tmp_path: Path, fresh: Callable[[Path], Path], shardline: Command, lines: list[str], words: str
) -> None:
    result = shardline("prepare", fresh(jsonl(tmp_path / "rows.jsonl", *lines)))
    result.assert_refused(words)
    assert results_in(tmp_path) == []


def test_rows_of_which_most_have_no_trained_token_are_refused_with_the_first_place_and_its_reason(
    tmp_path: Path, fresh: Callable[[Path], Path], shardline: Command
) -> None:
    result = shardline("prepare", fresh(jsonl(tmp_path / "rows.jsonl", ANSWERED, UNANSWERED, UNANSWERED)))
    result.assert_refused("rows.jsonl:2", "no turn has the role 'assistant'")
    assert results_in(tmp_path) == []


@pytest.mark.parametrize("verb", ["train", "inspect", "evaluate", "export"])
def test_a_verb_that_needs_prepared_data_says_how_to_get_it(
    tmp_path: Path, fresh: Callable[[Path], Path], shardline: Command, verb: str
) -> None:
    step = ["--step", "1"] if verb == "inspect" else []
    path = fresh(jsonl(tmp_path / "rows.jsonl", PAIR))
    result = shardline(verb, path, *step)
    result.assert_refused(f"there is no prepared data here; run `shardline prepare {path}` first")
    assert results_in(tmp_path) == []


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("export", "holds no checkpoint; run `shardline train {path}` first"),
        ("generate", "no exported model here; run `shardline export {path}` first"),
        ("evaluate", "no exported model here; run `shardline export {path}` first"),
    ],
)
def test_a_verb_that_comes_too_early_says_what_comes_before_it(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command, verb: str, words: str
) -> None:
    path = run_yaml(tmp_path)
    shardline(verb, path).assert_refused(words.format(path=path))
    assert results_in(tmp_path) == []


def test_empty_places_are_told_before_a_machine_is_taken(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command
) -> None:
    result = shardline("check", run_yaml(tmp_path, cpu_ranks=3, micro_batch_rows=2))
    assert result.code == 0
    assert "4 of 12 places empty; none would be on 2 or 4 ranks, or with a global batch of 6 or 12 rows" in result.out
    result = shardline("check", run_yaml(tmp_path, cpu_ranks=7, micro_batch_rows=2))
    assert "WARNING        train.global_batch_rows: 8 rows for 7 ranks x 2 micro_batch_rows: 43% of" in result.out


def test_how_equal_the_ranks_shares_are_is_told_and_a_run_that_began_in_turn_keeps_doing_so(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command
) -> None:
    path = run_yaml(tmp_path, cpu_ranks=2)
    older = Path(shutil.copytree(load_run(path).shards, tmp_path / "data"))
    write_manifest(older, replace(read_manifest(older), others=[]))  # does not list the file of the rows' work
    assert "balance" not in shardline("check", path, "-o", f"data.folder={older}").out
    check = ("check", path)
    said = shardline(*check).out
    assert "balance      the ranks' attention work differs by" in said and "; in turn it would be" in said
    root = Path(re.findall("the run goes to (.*)", said)[0])
    root.mkdir(parents=True)
    (root / "plan.json").write_text("{}")
    said = shardline(*check).out
    assert ": batches are dealt in turn, as when the run began" in said


def test_shards_of_another_tokenizer_are_told_before_a_machine_is_taken(
    tmp_path: Path, tiny_model: Path, run_yaml: Callable[..., Path], shardline: Command
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.eos_token = "<s>"
    tokenizer.save_pretrained(other)
    result = shardline("check", run_yaml(tmp_path), "-o", f"model.path={other}")
    result.assert_refused("the shards were made with another tokenizer", str(other), "run `shardline prepare ")


def test_shards_with_rows_of_another_length_are_refused(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command
) -> None:
    result = shardline("train", run_yaml(tmp_path), "-o", "data.row_tokens=128")
    result.assert_refused("data.row_tokens: 128, but the shards", "have 64", "run `shardline prepare` again")
    assert results_in(tmp_path) == []


def test_a_damaged_manifest_is_named(tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command) -> None:
    path = run_yaml(tmp_path)
    shutil.copytree(json.loads(path.read_text())["data"]["folder"], tmp_path / "shards")
    manifest = tmp_path / "shards" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"row_tokens": 64', '"row_tokens": 72'))
    result = shardline("train", path, "-o", f"data.folder={tmp_path / 'shards'}")
    result.assert_refused("manifest.json: its digest does not match its content", "run `shardline prepare")


def test_init_in_a_folder_that_has_a_run_leaves_it_alone(tmp_path: Path, shardline: Command) -> None:
    (tmp_path / "run.yaml").write_text("mine")
    result = shardline("init", "text", "--output", tmp_path / "run.yaml")
    result.assert_refused("run.yaml: exists already; choose another --output, or remove it")


def test_a_person_who_types_it_sees_the_same_line(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline_process: Command
) -> None:
    result = shardline_process("train", run_yaml(tmp_path), "-o", "train.epochs=1")
    result.assert_refused("train: give one of 'epochs' and 'steps', not both")
    assert result.out == ""


def test_a_model_that_the_hub_cannot_give_is_named(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline_process: Command
) -> None:
    result = shardline_process("check", run_yaml(tmp_path), "-o", "model.path=nobody/nothing", HF_HUB_OFFLINE="1")
    result.assert_refused(
        "model.path: nobody/nothing is no folder here, it was never fetched, and HF_HUB_OFFLINE is set"
    )


@pytest.mark.slow
def test_ranks_that_refuse_a_run_say_so_once_and_leave_nothing(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline_process: Command
) -> None:
    result = shardline_process("train", run_yaml(tmp_path), "--ranks", "2", "-o", "train.deepspeed=zero4.json")
    result.assert_refused("train.deepspeed: ", "zero4.json: no such file; ds_configs/ holds the templates")
    assert results_in(tmp_path / "run") == []


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "many", ""])
@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("train", "--ranks"),
        ("verify-resume", "--ranks"),
        ("verify-resume", "--other-ranks"),
        ("verify-resume", "--steps"),
        ("prepare", "--preview"),
        ("generate", "--tokens"),
        ("inspect", "--step"),
        ("inspect", "--characters"),
    ],
)
def test_a_count_that_counts_nothing_is_refused_not_taken_for_the_default(
    capsys: pytest.CaptureFixture[str], verb: str, option: str, number: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "run.yaml", option, number])
    assert ended.value.code == 2
    assert f"argument {option}: {number!r} is not a whole number of 1 or more" in capsys.readouterr().err
