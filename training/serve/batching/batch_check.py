"""Prove on the model that is served that answering requests together changes no answer.

Three made-up prompts of different lengths join and leave the batch as requests do, and each step's logits are compared
with those of a forward pass over the whole text of one request, without a cache. Nothing but this tells that a model
ignores the padding, or counts its positions from it: the answers would be wrong, and look almost right.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from cluster.errors import CheckpointError
from training.generate.sampling import Sampling
from training.serve.batching.batch import Apart, Batch, Together
from training.serve.batching.requests import Request
from training.step.packed_model import length_border

log = logging.getLogger(__name__)

PROMPT_TOKENS = (3, 11, 6)
STEPS = 4
TOLERANCE = {torch.float32: 5e-3, torch.float16: 0.1}  # of the logits' standard deviation
COARSE = 0.3  # in bfloat16 and narrower types
ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError)


@torch.inference_mode()
def proven_batch(model: Any) -> Batch:
    """Return the fastest way of answering several requests that gives the model's own logits.

    Raises CheckpointError if there is none.
    """
    found = [] if length_border(model) is None else ["longrope: long texts have other positions than short ones"]
    for kind in (Apart,) if found else (Together, Apart):
        try:
            error = largest_error(model, kind(model))
        except ERRORS as problem:  # what a model says that cannot do this at all
            found.append(
                f"{kind.__name__.lower()}: {type(problem).__name__}: {next(iter(str(problem).splitlines()), '')}"
            )
            continue
        if error <= TOLERANCE.get(model.dtype, COARSE):
            if kind is Apart:
                log.warning("this model answers requests in turns, not as one batch (%s): it is slower", found[0])
            return kind(model)
        found.append(f"{kind.__name__.lower()}: logits differ by {error:.2g} standard deviations")
    raise CheckpointError(
        f"{type(model).__name__} cannot be served here, its answers would be wrong ({'; '.join(found)});"
        " use `shardline generate`, or vLLM"
    )


def largest_error(model: Any, batch: Batch) -> float:
    """Return the largest difference between the logits of a batch and of the model, in their standard deviations."""
    vocabulary = model.get_input_embeddings().num_embeddings
    rows = [made_up(length, vocabulary) for length in PROMPT_TOKENS]
    worst = 0.0
    for row in rows:
        worst = max(worst, error_of(model, row, batch.join(row)))
        take(batch)
        worst = max(worst, *(error_of(model, *pair) for pair in zip(batch.rows, batch.step(), strict=True)))
    batch.remove({rows[1]})
    for _ in range(STEPS):
        take(batch)
        worst = max(worst, *(error_of(model, *pair) for pair in zip(batch.rows, batch.step(), strict=True)))
    batch.remove(set(rows))
    return worst


def made_up(length: int, vocabulary: int) -> Request:
    ids = [(7 + 13 * place * length) % vocabulary for place in range(length)]
    return Request(ids=ids, stops=[], sampling=Sampling(), deadline=time.monotonic(), deliver=lambda event: None)


def take(batch: Batch) -> None:
    for row in batch.rows:
        row.tokens.append((row.ids[-1] + 5 * len(row.tokens)) % max(row.ids[-1] + 1, 40))


def error_of(model: Any, row: Request, logits: torch.Tensor) -> float:
    inputs = torch.tensor([row.ids + row.tokens], device=model.device)
    expected = model(input_ids=inputs, use_cache=False).logits[0, -1].float()
    error = float((logits.float() - expected).abs().max() / expected.std().clamp(min=1e-12))
    return error if error == error else float("inf")  # not a number: nothing is proven
