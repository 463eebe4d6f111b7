"""Answer many prompts in batches, with the answers that each would get alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from training.generate.answers import Answer, answer_together, generation_settings, positions, room
from training.generate.sampling import Sampling

log = logging.getLogger(__name__)

NOISE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the logits' range, from another order of sums
COARSE_NOISE = 0.1  # in bf16 and fp16


def plan_batches(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], sampling: Sampling, size: int
) -> list[list[int]]:
    """Return the places of the prompts of each batch, of similar lengths. Raises DataError if one does not fit."""
    for ids in prompts:
        room(model, len(ids))
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    if size == 1 or not order:
        return [[place] for place in order]
    may_pad = padding_changes_nothing(model, tokenizer, prompts[order[0]], prompts[order[-1]], sampling)
    longest = positions(model)
    batches: list[list[int]] = []
    for place in order:
        length = len(prompts[place])
        # beside a long prompt, the model's positions would leave a short one a shorter answer than it has alone
        is_tight = longest is not None and length + sampling.tokens > longest
        same = bool(batches) and len(prompts[batches[-1][0]]) == length
        if batches and len(batches[-1]) < size and (same or (may_pad and not is_tight)):
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


@torch.inference_mode()
def padding_changes_nothing(model: Any, tokenizer: Any, short: list[int], long: list[int], sampling: Sampling) -> bool:
    """Return whether a prompt has the same next token's logits alone and padded to the length of a longer one.

    Some architectures do not follow the mask. A repetition penalty counts the padding as text.
    """
    if sampling.repetition_penalty != 1:
        return False
    width = len(long)
    if len(short) == width:
        return True
    settings = generation_settings(model, tokenizer, width, Sampling(tokens=1))
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    logits = []
    for padding in (0, width - len(short)):
        ids = torch.tensor([[settings["pad_token_id"]] * padding + short], device=model.device)
        mask = torch.tensor([[0] * padding + [1] * len(short)], device=model.device)
        logits.append(model.generate(ids, attention_mask=mask, **settings).logits[0][0].float())
    alone, padded = logits
    difference = float((alone - padded).abs().max() / (alone.max() - alone.min()).clamp(min=1e-9))
    is_same = difference <= NOISE.get(model.dtype, COARSE_NOISE)
    if not is_same:
        log.info("%s changes its answers with padding: only prompts of one length share a batch", type(model).__name__)
    return is_same


def answers(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], sampling: Sampling, batches: Sequence[list[int]]
) -> Iterator[tuple[int, Answer]]:
    """Yield the place and the answer of each prompt, batch after batch; with a seed, each batch has one of its own."""
    for batch in batches:
        own = (
            sampling
            if sampling.seed is None
            else sampling.model_copy(update={"seed": (sampling.seed + batch[0]) % 2**63})
        )
        yield from zip(batch, answer_together(model, tokenizer, [prompts[p] for p in batch], own), strict=True)
