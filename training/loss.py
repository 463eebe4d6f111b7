"""The one loss that is trained and reported."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """What an optimizer step did, the same on every rank. `skipped` says why it changed no weight, if it did not."""

    loss: float
    gradient_norm: float
    skipped: str | None = None


def summed_loss(logits: torch.Tensor, input_ids: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """Return the sum over trained tokens of -ln p(token), in fp32.

    Logits are [rows, row_tokens, vocab], ids and mask [rows, row_tokens]; the token at t is predicted at t - 1. Only
    the logits of trained tokens are raised to fp32.
    """
    trained = loss_mask[:, 1:]
    return F.cross_entropy(logits[:, :-1][trained].float(), input_ids[:, 1:][trained], reduction="sum")
