"""Parameters by arithmetic beside those of transformers' own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cluster.errors import ConfigError
from training.config import TrainConfig
from training.costs.shapes import ModelShape, as_trained, shape_of_config, shape_of_skeleton
from training.models.source import ModelOrigin

SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 90,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "llama biased": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    "llama tied": {"tie_word_embeddings": True},
    "mistral": {"head_dim": 16, "num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"head_dim": 24, "num_key_value_heads": 2},
}


def made(name: str) -> Any:
    return AutoConfig.for_model(name.split()[0], **{**SMALL, **FAMILIES[name]})


def skeleton(config: Any, train: TrainConfig) -> Any:
    return ModelOrigin(config=config, tokenizer=None, folder=None).trained_skeleton(train)


def names(shape: ModelShape) -> dict[str, tuple[tuple[int, ...], bool]]:
    return {parameter.name: (parameter.shape, parameter.is_trained) for parameter in shape.parameters}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parameters_are_those_of_transformers(name: str) -> None:
    config = made(name)
    by_arithmetic = shape_of_config(config.to_dict())
    built = shape_of_skeleton(skeleton(config, TrainConfig()), config)
    assert by_arithmetic is not None
    assert names(by_arithmetic) == names(built)
    assert vars(by_arithmetic)["width"] == built.width
    assert (by_arithmetic.attention_width, by_arithmetic.key_width) == (built.attention_width, built.key_width)


@pytest.mark.parametrize(
    "train",
    [
        {"lora": {"rank": 4}},
        {"lora": {"rank": 3, "target_modules": ["q_proj", "down_proj"]}},
        {"freeze": ["model.embed_tokens.*", "*.0.*"]},
    ],
    ids=str,
)
def test_trained_and_frozen_parameters_are_counted_as_they_are_trained(train: dict[str, Any]) -> None:
    config, asked = made("llama"), TrainConfig.model_validate(train)
    shape = shape_of_config(config.to_dict())
    assert shape is not None
    built = shape_of_skeleton(skeleton(config, asked), config)
    by_arithmetic = as_trained(shape, asked)
    assert (by_arithmetic.total, by_arithmetic.trained) == (built.total, built.trained)
    assert by_arithmetic.used_trained == built.used_trained


def test_a_pattern_that_matches_nothing_is_told() -> None:
    shape = shape_of_config(made("llama").to_dict())
    assert shape is not None
    with pytest.raises(ConfigError, match="matches no parameter"):
        as_trained(shape, TrainConfig(freeze=["transformer.*"]))


def test_only_the_experts_that_a_token_uses_cost_it_arithmetic() -> None:
    config = AutoConfig.for_model("mixtral", **SMALL, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=1)
    with torch.device("meta"):
        shape = shape_of_skeleton(AutoModelForCausalLM.from_config(config), config)
    experts = 3 * 4 * 3 * 48 * 80  # layers x experts x matrices
    assert shape.total - shape.used - 2 * shape.head == pytest.approx(experts * 3 / 4)


def test_an_architecture_that_is_not_listed_is_left_to_transformers() -> None:
    assert shape_of_config({"model_type": "gpt2"}) is None
