"""Answer a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from training.generate.sampling import Sampling
from training.models.stop_tokens import stop_token_ids


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer, and whether the model ended it with a stop token."""

    text: str
    stopped: bool


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, ids: list[int], sampling: Sampling) -> Answer:
    """Continue `ids` until the model ends its answer or the answer is as long as it may be."""
    stops = stop_token_ids(tokenizer)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stops or [0])[0]
    inputs = torch.tensor([ids], device=model.device)
    output = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        eos_token_id=stops or None,
        pad_token_id=padding,
        **sampling.settings(),
    )
    new = output[0, len(ids) :].tolist()
    stopped = bool(new) and new[-1] in stops
    return Answer(text=tokenizer.decode(new, skip_special_tokens=True).strip(), stopped=stopped)
