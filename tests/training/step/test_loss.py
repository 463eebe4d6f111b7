"""The loss by hand, and through the head without the logits of all tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training.step import loss as losses
from training.step.loss import HeadLoss, LogitRule, LossHead, Trained, summed_loss

TOKENS, WIDTH, VOCAB = 13, 2, 11
head_loss: Callable[..., torch.Tensor] = HeadLoss.apply  # torch gives it no types
RULES = [LogitRule(), LogitRule(scale=0.125), LogitRule(cap=3.0), LogitRule(scale=2.0, cap=5.0)]


@given(seed=st.integers(0, 99))
def test_the_loss_is_the_cross_entropy_of_the_targets(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(TOKENS, VOCAB, generator=generator)
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator)
    by_hand = 0.0
    for scores, target in zip(logits.tolist(), targets.tolist(), strict=True):
        by_hand -= math.log(math.exp(scores[target]) / sum(map(math.exp, scores)))
    assert math.isclose(float(summed_loss(logits, targets)), by_hand, rel_tol=1e-5)


def test_low_precision_logits_are_summed_in_full_precision() -> None:
    logits = torch.randn(2049, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.zeros(2049, dtype=torch.long)
    assert summed_loss(logits, targets).dtype == torch.float32
    assert torch.equal(summed_loss(logits, targets), summed_loss(logits.float(), targets))


@pytest.fixture(params=[1, 4 * VOCAB, 1 << 24], ids=["a token at a time", "chunks of 4", "all at once"])
def chunk_logits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", request.param)
    yield


def inputs(dtype: torch.dtype, tokens: int = TOKENS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in ((tokens, WIDTH), (VOCAB, WIDTH), (VOCAB,))]
    hidden, weight, bias = (tensor.to(dtype).requires_grad_() for tensor in made)
    return hidden, weight, bias, torch.randint(VOCAB, (tokens,), generator=generator)


@pytest.mark.usefixtures("chunk_logits")
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_loss_in_chunks_and_its_gradients_are_those_of_all_logits(dtype: torch.dtype, rule: LogitRule) -> None:
    hidden, weight, bias, targets = inputs(dtype)
    expected = summed_loss(rule(nn.functional.linear(hidden, weight, bias).float()), targets)
    wanted = torch.autograd.grad(expected * 0.5, (hidden, weight, bias))
    found = head_loss(hidden, weight, bias, targets, rule)
    got = torch.autograd.grad(found * 0.5, (hidden, weight, bias))
    exact = dtype == torch.float32
    assert math.isclose(float(found), float(expected), rel_tol=1e-6 if exact else 1e-5)
    for gradient, other in zip(got, wanted, strict=True):
        assert gradient.dtype == dtype
        assert torch.allclose(gradient.float(), other.float(), rtol=0, atol=1e-5 if exact else 3e-2)


def test_what_is_frozen_gets_no_gradient() -> None:
    hidden, weight, bias, targets = inputs(torch.float32)
    frozen = weight.detach()
    torch.autograd.backward(head_loss(hidden, frozen, bias, targets, LogitRule()))
    assert hidden.grad is not None and bias.grad is not None and frozen.grad is None


def test_without_a_trained_token_the_loss_is_zero_and_every_gradient_exists_and_is_zero() -> None:
    hidden, weight, bias, _ = inputs(torch.float32)
    loss = head_loss(hidden[:0], weight, bias, torch.zeros(0, dtype=torch.long), LogitRule())
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0.0
    for tensor in (hidden, weight, bias):  # in ZeRO-3 the other ranks wait for each
        assert tensor.grad is not None and not tensor.grad.any()


@pytest.mark.parametrize(
    "module", [nn.Linear(WIDTH, VOCAB), nn.Sequential(nn.Linear(WIDTH, VOCAB))], ids=["linear", "other"]
)
def test_a_head_returns_the_loss_of_the_trained_places_and_logits_to_anybody_else(module: nn.Module) -> None:
    hidden = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    expected = module(hidden)
    head = LossHead(module)
    trained = Trained(places=torch.tensor([0, 7, 8]), targets=torch.tensor([3, 1, 4]))
    with head.acting(lambda states: head.loss(states, trained, LogitRule())):
        module(hidden)
    loss = head.take()
    assert torch.allclose(loss, summed_loss(expected.flatten(0, 1)[trained.places], trained.targets))
    assert torch.equal(module(hidden), expected)
    with pytest.raises(RuntimeError, match="did not call its output head"):
        head.take()
