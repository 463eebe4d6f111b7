"""Which model a run starts from, and every way in which it does not fit the data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from cluster.errors import ConfigError, DataError, ShardlineError
from data_prep.shards import Manifest, read_manifest, template_digest, tokenizer_digest
from training.config import ModelConfig
from training.models.source import ModelOrigin, find_model

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def shards(uneven_shards: Callable[[int], Path]) -> Path:
    return uneven_shards(4)


def new_model(shards: Path, model_type: str = "llama", **config: Any) -> ModelOrigin:
    model = ModelConfig.model_validate({"new": {"model_type": model_type, "config": config}})
    return find_model(model, shards, read_manifest(shards))


def model_of(folder: Path, shards: Path, **changes: Any) -> ModelOrigin:
    manifest: Manifest = replace(read_manifest(shards), **changes)
    return find_model(ModelConfig(path=str(folder)), shards, manifest)


def test_a_folders_model_has_its_configuration_and_its_number_of_parameters(tiny_model: Path, shards: Path) -> None:
    origin = model_of(tiny_model, shards)
    tensors = load_file(tiny_model / "model.safetensors").values()
    assert (origin.config.model_type, origin.folder) == ("llama", tiny_model)
    assert origin.parameters == sum(tensor.numel() for tensor in tensors)


def test_shards_of_another_tokenizer_are_refused_with_both_digests(tiny_model: Path, shards: Path) -> None:
    ours = tokenizer_digest(AutoTokenizer.from_pretrained(tiny_model))
    with pytest.raises(DataError) as caught:
        model_of(tiny_model, shards, tokenizer_digest="0123456789abcdef")
    assert "0123456789ab" in str(caught.value) and ours[:12] in str(caught.value)
    assert "run `shardline prepare RUN.yaml` with this model" in str(caught.value)


def test_conversations_made_with_another_template_than_the_tokenizer_has_are_refused(
    tiny_model: Path, shards: Path
) -> None:
    its_own = template_digest(AutoTokenizer.from_pretrained(shards / "tokenizer").chat_template)
    model_of(tiny_model, shards, template_digest=its_own, conversational=True)
    model_of(tiny_model, shards, template_digest=template_digest("another"))  # running text is made with none

    with pytest.raises(DataError, match="its chat template is not the one that the rows were made with"):
        model_of(tiny_model, shards, template_digest=template_digest("another"), conversational=True)


def test_a_tokenizer_with_another_end_of_text_is_another_tokenizer(
    tmp_path: Path, tiny_model: Path, shards: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<s>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(DataError, match="the shards were made with another tokenizer"):
        model_of(folder, shards)


def test_rows_longer_than_the_model_are_refused_with_both_lengths(tiny_model: Path, shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.row_tokens: 256 is longer than the model's 128 positions; lower it"):
        model_of(tiny_model, shards, row_tokens=256)


def test_a_folder_that_is_not_there_is_named(shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.path: './no/such/model' is no folder here"):
        find_model(ModelConfig(path="./no/such/model"), shards, read_manifest(shards))


def test_a_folder_without_a_model_is_named(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(ShardlineError, match=str(tmp_path)):
        model_of(tmp_path, shards)


def test_a_new_model_has_the_tokenizers_vocabulary_and_room_for_a_row(shards: Path) -> None:
    manifest = read_manifest(shards)
    origin = new_model(shards, "llama", **SMALL)
    assert (origin.config.vocab_size, origin.config.max_position_embeddings) == (manifest.vocab_size, 64)
    assert (origin.config.eos_token_id, origin.config.pad_token_id) == (origin.tokenizer.eos_token_id, None)
    assert origin.folder is None


@pytest.mark.parametrize(
    ("model_type", "config"),
    [("llama", {**SMALL, "max_position_embeddings": 256}), ("gpt2", {"n_embd": 32, "n_head": 4, "n_positions": 256})],
)
def test_a_new_model_may_have_more_positions_than_a_row_has_tokens(
    shards: Path, model_type: str, config: dict[str, Any]
) -> None:
    assert new_model(shards, model_type, **config).config.max_position_embeddings == 256


def test_a_new_model_with_fewer_positions_than_a_row_is_refused(shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.row_tokens: 64 is longer than the model's 32 positions"):
        new_model(shards, "llama", **SMALL, max_position_embeddings=32)


def test_keys_that_the_architecture_has_not_are_named(shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"a llama has no hiden_size \(did you mean hidden_size\?\), wheels$"):
        new_model(shards, hiden_size=32, wheels=2)


def test_keys_that_only_the_model_s_code_reads_are_accepted(shards: Path) -> None:
    moe = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "num_key_value_heads": 2}
    origin = new_model(shards, "qwen3_moe", **SMALL, **moe, head_dim=16)
    assert origin.skeleton.get_parameter("model.layers.0.self_attn.q_proj.weight").shape == (64, 32)


def test_words_of_transformers_4_for_rotary_positions_are_accepted(shards: Path) -> None:
    assert new_model(shards, "llama", **SMALL, rope_theta=5e5).config.rope_parameters["rope_theta"] == 5e5


@pytest.mark.parametrize("key", ["vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"])
def test_keys_that_come_from_the_tokenizer_are_refused(shards: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.new\.config: {key}: set by the tokenizer; remove from the YAML"):
        new_model(shards, "llama", **{key: 7})


def test_an_architecture_that_nobody_knows_is_named(shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.new: Unrecognized model identifier: lama"):
        new_model(shards, "lama")


@pytest.mark.parametrize(
    ("model_type", "config", "named"),
    [
        ("llama", {"hidden_size": "big"}, "hidden_size"),
        ("llama", {"hidden_size": 65, "num_attention_heads": 4}, "65"),
        ("gpt2", {"n_embd": 65, "n_head": 4}, "65"),
        ("t5", {}, "t5"),
    ],
)
def test_an_impossible_architecture_is_a_problem_of_the_configuration(
    shards: Path, model_type: str, config: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=rf"(?is)model\.new.*{named}"):
        _ = new_model(shards, model_type, **config).skeleton
