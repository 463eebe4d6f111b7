"""Attention by documents is what a mask that shows each token its own document alone would make of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training.step.document_attention import CURRENT, attend, attending

HEADS, KEY_HEADS, WIDTH, VALUE_WIDTH = 4, 2, 8, 6
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scaling": 0.7},
    "window": {"sliding_window": 4},
    "soft cap": {"softcap": 0.8},
    "sinks": {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "all": {"scaling": 0.7, "sliding_window": 3, "softcap": 0.8, "s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
}


def tensors(rows: int, row_tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys and values."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(HEADS, WIDTH), (KEY_HEADS, WIDTH), (KEY_HEADS, VALUE_WIDTH)]
    made = [torch.randn(rows, heads, row_tokens, width, generator=generator) for heads, width in shapes]
    query, key, value = (tensor.requires_grad_() for tensor in made)
    return query, key, value


def under_a_mask(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: torch.Tensor, **rule: Any
) -> torch.Tensor:
    """Return the output [rows, tokens, heads, width] by its definition; `documents` [rows, tokens] numbers them."""
    key, value = (tensor.repeat_interleave(HEADS // KEY_HEADS, dim=1) for tensor in (key, value))
    places = torch.arange(query.shape[2])
    back = places[:, None] - places[None]
    seen = (back >= 0) & (back < (rule.get("sliding_window") or 10**9)) & (documents[:, :, None] == documents[:, None])
    scores = query @ key.transpose(2, 3) * (rule.get("scaling") or WIDTH**-0.5)
    if rule.get("softcap"):
        scores = torch.tanh(scores / rule["softcap"]) * rule["softcap"]
    weights = scores.masked_fill(~seen[:, None], -torch.inf).exp()
    sinks = rule.get("s_aux")
    rest = 0.0 if sinks is None else sinks.exp().reshape(1, -1, 1, 1)
    found: torch.Tensor = weights / (weights.sum(-1, keepdim=True) + rest) @ value
    return found.transpose(1, 2)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@settings(max_examples=25)
@given(
    lengths=st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=5), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_are_those_under_a_mask(
    rule: dict[str, Any], lengths: list[list[int]], seed: int
) -> None:
    row_tokens = max(map(sum, lengths))
    whole = [[*row, row_tokens - sum(row)] if sum(row) < row_tokens else row for row in lengths]
    documents = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in whole])
    inputs = tensors(len(whole), row_tokens, seed)
    attending([length for row in whole for length in row])
    found, _ = attend(nn.Identity(), *inputs, None, **rule)
    expected = under_a_mask(*inputs, documents, **rule)
    assert torch.allclose(found, expected, atol=1e-5)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
    got = torch.autograd.grad((found * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    ("settings", "mask"),
    [({"position_bias": torch.zeros(1)}, None), ({"is_causal": False}, None), ({}, torch.zeros(1, 1, 4, 4))],
)
def test_what_would_be_left_out_is_noted(settings: dict[str, Any], mask: torch.Tensor | None) -> None:
    attending([4])
    CURRENT.unsupported = None
    attend(nn.Identity(), *tensors(1, 4, 0), mask, **settings)
    assert CURRENT.unsupported is not None


def test_attention_that_was_not_told_the_documents_is_refused() -> None:
    attending(None)
    with pytest.raises(RuntimeError, match="without the documents"):
        attend(nn.Identity(), *tensors(1, 4, 0), None)
