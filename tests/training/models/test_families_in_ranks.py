"""Experts one by one, towers, old names and a router's balance arrive in the engine of every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow
DTYPES = {"mixtral": torch.float32, "gemma3": torch.float32, "gpt_neox": torch.float32, "deepseek_v3": torch.bfloat16}


@pytest.fixture
def trial(trial_of: Callable[..., Any]) -> Any:
    return trial_of(2, "family_ranks.py", rows=6)


@pytest.mark.parametrize("name", DTYPES)
def test_forward_sees_the_weights_and_buffers_that_transformers_loads(trial: Any, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(trial.folder / f"model-{name}-0", dtype=DTYPES[name])
    weights = dict(model.named_parameters())
    for rank in trial.by_rank(f"weights-{name}"):
        assert rank.keys() == weights.keys()
        for key, tensor in rank.items():  # all of a training model is of one precision, also what stays fp32 here
            assert torch.equal(tensor, weights[key].to(DTYPES[name]).float()), key
    buffers = dict(model.named_buffers())
    for rank in trial.by_rank(f"buffers-{name}"):
        assert {key: tensor.dtype for key, tensor in rank.items()} == {k: v.dtype for k, v in buffers.items()}
        assert all(torch.equal(tensor, buffers[key]) for key, tensor in rank.items())
