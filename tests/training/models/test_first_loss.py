"""A model made from nothing begins as ignorant as it should, in every world."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.shards import read_manifest
from training.config import ModelConfig
from training.models.source import ModelOrigin, find_model

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("ranks", [1, 2, 4])]
NEW_LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SEED = 5


@pytest.fixture(scope="module")
def origin(uneven_shards: Callable[[int], Path]) -> ModelOrigin:
    """The new model that ranks.py makes."""
    folder = uneven_shards(8)
    return find_model(ModelConfig.model_validate({"new": {"config": NEW_LLAMA}}), folder, read_manifest(folder))


def test_the_first_loss_of_a_new_model_is_that_of_guessing(
    trial_of: Callable[[int], Any], origin: ModelOrigin, ranks: int
) -> None:
    loss = trial_of(ranks).facts("new-loss")["loss"]
    assert loss == pytest.approx(math.log(origin.config.vocab_size), rel=0.03)


def test_the_ranks_begin_with_the_weights_that_one_process_would_make(
    trial_of: Callable[[int], Any], origin: ModelOrigin, ranks: int
) -> None:
    weights, found = origin.first_weights(SEED), trial_of(ranks).joined("new")
    shapes = {name: parameter.shape for name, parameter in origin.skeleton.named_parameters()}
    assert found.keys() == shapes.keys()
    for name, shape in shapes.items():
        assert torch.equal(found[name], weights.part(name, tuple(shape), 0, shape.numel())), name
