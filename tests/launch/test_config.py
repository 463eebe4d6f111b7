"""The whole YAML of a run: sections that must fit each other, and files that read back."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.config_loading import load_config
from cluster.errors import ConfigError
from launch.config import RunConfig
from launch.data.init import SHAPES, write_init
from launch.runs.check import idle_keys
from launch.runs.train import start_ranks
from launch.saved_config import load_run, save_config, saved_text
from training.config import LoraConfig, TrainConfig
from training.models import untrainable

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path for path in (ROOT / "examples").rglob("*.yaml") if "cluster" not in path.parts)
TRAINED = {"train": {"vocab_size": 512}}


def written(folder: Path, *, model: dict[str, Any], **data: Any) -> Path:
    values = {"name": "run", "data": {"sources": [{"path": "corpus"}], **data}, "model": model}
    path = folder / "run.yaml"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_is_a_valid_run(path: Path) -> None:
    assert load_config(RunConfig, path).data.sources


def test_a_model_with_a_path_brings_its_own_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.tokenizer: a model from 'model\.path' brings its own tokenizer"):
        load_config(RunConfig, written(tmp_path, model={"path": "m"}, tokenizer=TRAINED))


def test_a_new_model_needs_a_tokenizer_and_is_shown_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.tokenizer: a new model needs one, for example: tokenizer: \{train"):
        load_config(RunConfig, written(tmp_path, model={"new": {}}))


@pytest.mark.parametrize("model", [{}, {"path": "m", "new": {}}])
def test_a_model_comes_from_a_path_or_from_nothing_never_both_or_neither(tmp_path: Path, model: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model: give exactly one of 'path' .* and 'new'"):
        load_config(RunConfig, written(tmp_path, model=model, tokenizer=TRAINED))


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"attention": "varlen"}, "train.attention: varlen needs a GPU, and there is none here: `train` would end"),
        ({"attention": "varlen", "precision": "fp32"}, "there is none here and precision: bf16: `train` would end"),
        ({"hpz": True}, "keeps no copy of the weights on one host, and only forces ZeRO stage 3: it keeps one within"),
        (
            {"hpz": True, "zero_stage": 3},
            "train.hpz keeps no copy of the weights on one host: it keeps one within each",
        ),
        ({"hpz": True, "zero_stage": 2}, "each of several, and needs ZeRO stage 3, not 2;"),
        ({"hpz": True, "deepspeed": str(ROOT / "ds_configs" / "zero1.json")}, "needs ZeRO stage 3, not 1;"),
    ],
)
def test_a_key_that_does_nothing_on_this_machine_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = load_config(RunConfig, written(tmp_path, model={"path": "m"}))
    (line,) = idle_keys(run.model_copy(update={"train": TrainConfig.model_validate(train, strict=False)}))
    assert line.startswith("WARNING        ") and said in line


@pytest.mark.parametrize(
    ("name", "proposed"), [("", "my-run"), ("../up", "up"), ("a b", "a-b"), (".hidden", "hidden"), ("a/b", "a-b")]
)
def test_a_name_that_is_no_folders_name_is_refused_and_one_is_proposed(
    tmp_path: Path, name: str, proposed: str
) -> None:
    with pytest.raises(ConfigError, match=rf"cannot name a folder.* as in {proposed}$"):
        load_config(RunConfig, written(tmp_path, model={"path": "m"}), [f"name={name!r}"])


def test_a_runs_folder_is_named_after_it_unless_told_otherwise(tmp_path: Path) -> None:
    path = written(tmp_path, model={"path": "m"})
    assert load_config(RunConfig, path).shards == Path("runs/run/shards")
    assert load_config(RunConfig, path, ["folder=/a"]).shards == Path("/a/shards")
    assert load_config(RunConfig, path, ["folder=/a", "data.folder=/b"]).shards == Path("/b")


@pytest.mark.parametrize("model", [None, "some/model"])
@pytest.mark.parametrize("kind", SHAPES)
def test_what_init_writes_for_every_kind_of_data_is_a_valid_run(tmp_path: Path, kind: str, model: str | None) -> None:
    path = tmp_path / "mine.yaml"
    assert str(path) in write_init(kind, "my/data", model, path)
    run = load_config(RunConfig, path)
    assert (run.name, run.data.sources[0].path, run.model.path) == ("mine", "my/data", model)


@pytest.mark.parametrize("data", ["my data/*.txt", "data: all", "#1", "C:\\text", "'quoted'", "- list"])
def test_init_writes_a_valid_run_whatever_the_data_is_called(tmp_path: Path, data: str) -> None:
    write_init("text", data, None, tmp_path / "run.yaml")
    assert load_config(RunConfig, tmp_path / "run.yaml").data.sources[0].path == data


@pytest.mark.parametrize("name", ["my run.yaml", "run.v2.yaml", "Über.yaml", "12.yaml"])
def test_init_writes_a_valid_run_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    write_init("text", "data", None, tmp_path / name)
    assert load_config(RunConfig, tmp_path / name).name


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"run\.yaml: exists already; choose another --output, or remove it"):
        write_init("text", "data", None, path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_example_kept_in_its_runs_folder_reads_back_the_same(tmp_path: Path, path: Path) -> None:
    run = load_config(RunConfig, path, [f"folder={tmp_path}"])
    save_config(run)
    assert saved_text(load_run(tmp_path)) == saved_text(run)


def test_a_run_kept_in_its_folder_reads_back_the_same(tmp_path: Path, run_yaml: Callable[..., Path]) -> None:
    path = run_yaml(tmp_path, clip_gradient_norm=None, schedule="linear", deepspeed="ds_configs/zero3.json")
    run = load_config(RunConfig, path, ["train.adam_epsilon=1e-12", "seed=4294967295", "data.validation_fraction=0"])
    save_config(run)
    assert run.train.clip_gradient_norm is None
    assert saved_text(load_run(run.paths.root)) == saved_text(run)


def test_a_new_models_configuration_keeps_its_nulls_and_numbers(tmp_path: Path) -> None:
    config = {"sliding_window": None, "initializer_range": 3e-5, "rope_parameters": {"rope_theta": 5e5}, "use": True}
    path = written(tmp_path, model={"new": {"model_type": "llama", "config": config}}, tokenizer=TRAINED)
    run = load_config(RunConfig, path, [f"folder={tmp_path / 'run'}"])
    save_config(run)
    assert saved_text(load_run(run.paths.root)) == saved_text(run)


def test_a_run_with_adapters_says_what_to_install_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untrainable, "find_spec", {"peft": None}.get)
    run = load_config(RunConfig, written(tmp_path, model={"path": "m"}))
    run = run.model_copy(update={"train": TrainConfig(lora=LoraConfig())})
    with pytest.raises(ConfigError, match=r"train\.lora: needs peft, .*: pip install -e '\.\[lora\]'"):
        start_ranks(run, Namespace(ranks=2))
    assert not run.paths.root.exists()
    assert untrainable.missing_peft(lora=False) is None
