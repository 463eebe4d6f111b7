"""What `check`, `prepare`, `train` and `init` say of the model that a run starts from, before anything is done."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from transformers import AutoTokenizer

from cluster.config_loading import load_config
from data_prep.encode.conversations import TEMPLATES
from data_prep.encode.tokenizer import train_tokenizer
from launch.config import RunConfig
from launch.data.init import write_init

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
Command = Callable[..., Any]  # returns a Result: see conftest.py


@pytest.fixture
def chat_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run that fine-tunes a model on one conversation; keywords go to `model:` and `data:`."""

    def write(path: Path | str, *, resize: bool = False, **data: Any) -> Path:
        said = [{"role": "user", "content": "a run"}, {"role": "assistant", "content": "ends"}]
        (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": said}) + "\n")
        values = {
            "name": "chat",
            "folder": str(tmp_path / "run"),
            "data": {"sources": [{"path": str(tmp_path / "chats.jsonl")}], "row_tokens": 64, **data},
            "model": {"path": str(path), "resize_embeddings": resize},
        }
        (tmp_path / "run.yaml").write_text(json.dumps(values))
        return tmp_path / "run.yaml"

    return write


@pytest.mark.parametrize("verb", ["check", "prepare"])
def test_a_model_that_cannot_be_trained_is_refused_before_anything_is_prepared(
    tmp_path: Path, chat_run: Callable[..., Path], shardline: Command, verb: str
) -> None:
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    shardline(verb, chat_run(tmp_path / "t5")).assert_refused("an encoder-decoder; only causal language models")
    assert not (tmp_path / "run").exists()


def test_training_refuses_a_model_that_has_lost_its_weights_before_it_starts_a_rank(
    tmp_path: Path, tiny_model: Path, run_yaml: Callable[..., Path], shardline: Command
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    result = shardline("train", run_yaml(tmp_path), "-o", f"model.path={folder}")
    result.assert_refused("has no model.safetensors; copy the model's weights there")
    assert not (tmp_path / "run").exists()


def test_check_tells_before_preparing_what_the_rows_will_be_made_with(
    tiny_model: Path, chat_run: Callable[..., Path], shardline: Command
) -> None:
    shardline("check", chat_run(tiny_model)).assert_refused("holds conversations, and the tokenizer has no chat temp")
    said = shardline("check", chat_run(tiny_model, chat_template="plain")).out
    assert "conversations from messages" in said
    assert "tokenizer      280 tokens; chat template: plain" in said
    shardline("check", chat_run(tiny_model, chat_template="chatml")).assert_refused("chatml needs <|im_start|>")
    said = shardline("check", chat_run(tiny_model, chat_template="chatml", resize=True)).out
    assert "embeddings     280 become 282; new ones start as the mean of the old" in said


def test_check_finds_a_special_token_beyond_the_embeddings_before_preparing(
    tmp_path: Path, tiny_model: Path, chat_run: Callable[..., Path], shardline: Command
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path / "model")
    result = shardline("check", chat_run(tmp_path / "model", chat_template="plain"))
    result.assert_refused("has 280 embeddings", "uses id 280 ('<pad>')")


def test_shards_of_another_template_are_refused(
    tmp_path: Path, tiny_model: Path, chat_run: Callable[..., Path], shardline: Command
) -> None:
    assert shardline("prepare", chat_run(tiny_model, chat_template="plain", validation_fraction=0.0)).code == 0
    run = chat_run(tiny_model, chat_template="chatml", resize=True, validation_fraction=0.0)
    for verb in ("check", "train"):
        shardline(verb, run).assert_refused("data.chat_template: chatml, but the shards in", "another template; run")


def test_check_finds_a_key_that_a_new_model_has_not_before_preparing(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command
) -> None:
    run = ["-o", f"folder={tmp_path}/other", "-o", "data.folder=null", "-o", "data.sources=[{url: https://a/b.txt}]"]
    new = [
        "-o",
        "model={path: null, new: {config: {hiden_size: 32}}}",
        "-o",
        "data.tokenizer={train: {vocab_size: 512}}",
    ]
    shardline("check", run_yaml(tmp_path), *run, *new).assert_refused("a llama has no hiden_size (did you mean hidden_")


def test_resizing_a_new_model_is_refused(tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command) -> None:
    changes = [
        "-o",
        "model={path: null, new: {}, resize_embeddings: true}",
        "-o",
        "data.tokenizer={train: {vocab_size: 512}}",
    ]
    shardline("check", run_yaml(tmp_path), *changes).assert_refused("'resize_embeddings' needs a 'path'")


def init(folder: Path, model: str) -> tuple[str, RunConfig]:
    folder.mkdir(exist_ok=True)
    write_init("conversations", "chats.jsonl", model, folder / "mine.yaml")
    return (folder / "mine.yaml").read_text(), load_config(RunConfig, folder / "mine.yaml")


def test_init_takes_the_plain_template_for_a_base_model_and_says_why(tmp_path: Path, tiny_model: Path) -> None:
    text, run = init(tmp_path, str(tiny_model))
    assert (run.data.chat_template, run.data.row_tokens) == ("plain", 128)
    assert "# the tokenizer has no chat template, and no tokens for ChatML" in text


def test_init_leaves_a_chat_model_its_own_template(tmp_path: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "chat")
    train_tokenizer(["what ends"], 300).save_pretrained(tmp_path / "chat")
    text, run = init(tmp_path, str(tmp_path / "chat"))
    assert run.data.chat_template is None
    assert "# the tokenizer's own shows what the assistant says" in text


def test_init_guesses_no_template_for_a_model_that_it_cannot_see(tmp_path: Path) -> None:
    text, run = init(tmp_path, "some/model")
    assert run.data.chat_template is None
    assert "# chat_template: plain           # some/model is not on this machine" in text


def test_init_refuses_a_folder_that_is_not_there(tmp_path: Path, tiny_model: Path, shardline: Command) -> None:
    command = ["init", "conversations", "--output", tmp_path / "run.yaml", "--model"]
    shardline(*command, f"{tiny_model}x").assert_refused(f"--model: '{tiny_model}x' is no folder here; did you mean")
    assert not (tmp_path / "run.yaml").exists()


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_what_the_page_on_models_writes_is_valid(tmp_path: Path, tiny_model: Path, block: str) -> None:
    (tmp_path / "page.yaml").write_text(block)
    (tmp_path / "run.yaml").write_text("base: page.yaml\nname: page\ndata: {sources: [{path: a}]}\n")
    given = YAML(typ="safe").load(block).get("model", {"path": str(tiny_model)})
    run = load_config(RunConfig, tmp_path / "run.yaml", [f"model.path={given['path']}"])
    assert run.data.chat_template in {None, *TEMPLATES}
