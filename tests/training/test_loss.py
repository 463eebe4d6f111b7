"""The loss by hand."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from training.loss import summed_loss

ROWS, TOKENS, VOCAB = 2, 6, 11


@given(mask=st.lists(st.booleans(), min_size=ROWS * TOKENS, max_size=ROWS * TOKENS), seed=st.integers(0, 99))
def test_the_loss_is_the_cross_entropy_of_the_trained_tokens_given_those_before_them(
    mask: list[bool], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(ROWS, TOKENS, VOCAB, generator=generator)
    ids = torch.randint(VOCAB, (ROWS, TOKENS), generator=generator)
    trained = torch.tensor(mask).reshape(ROWS, TOKENS)
    by_hand = 0.0
    for row in range(ROWS):
        for place in range(1, TOKENS):
            if trained[row, place]:
                scores = [math.exp(float(score)) for score in logits[row, place - 1]]
                by_hand -= math.log(scores[int(ids[row, place])] / sum(scores))
    assert math.isclose(float(summed_loss(logits, ids, trained)), by_hand, rel_tol=1e-5, abs_tol=1e-6)


def test_rows_without_a_trained_token_add_nothing_and_can_still_go_backward() -> None:
    logits = torch.randn(ROWS, TOKENS, VOCAB, requires_grad=True)
    loss = summed_loss(logits, torch.zeros(ROWS, TOKENS, dtype=torch.long), torch.zeros(ROWS, TOKENS, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None and not logits.grad.any()


def test_low_precision_logits_are_summed_in_full_precision() -> None:
    logits = torch.randn(1, 2049, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    ids, mask = torch.zeros(1, 2049, dtype=torch.long), torch.ones(1, 2049, dtype=torch.bool)
    assert summed_loss(logits, ids, mask).dtype == torch.float32
    assert torch.equal(summed_loss(logits, ids, mask), summed_loss(logits.float(), ids, mask))
