"""Answer prompts, one or several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteriaList

from cluster.errors import DataError
from training.generate.sampling import Sampling
from training.generate.stops import StopTexts, before_stop, cut_at_stop, split_stops, stop_ids
from training.generate.token_text import decoded


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer, and whether the model ended it with a stop token or a stop text.

    `text` is without the white space around it, which `raw` has; `tokens` counts the stop token too.
    """

    text: str
    stopped: bool
    raw: str = ""
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Stops:
    """What ends an answer: token ids, and texts."""

    ids: list[int]
    texts: list[str]


def find_stops(model: Any, tokenizer: Any, sampling: Sampling) -> Stops:
    asked, texts = split_stops(tokenizer, sampling.stop)
    return Stops(ids=list(dict.fromkeys([*stop_ids(model, tokenizer), *asked])), texts=texts)


def positions(model: Any) -> int | None:
    """Return how many tokens the prompt and the answer may have together; None if there is no limit."""
    known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return known if isinstance(known, int) and known > 0 else None


def room(model: Any, prompt_tokens: int) -> int | None:
    """Return how many tokens an answer may have. Raises DataError if the prompt leaves none, or is empty."""
    if prompt_tokens == 0:
        raise DataError("the prompt is empty; give the text that the model is to continue")
    longest = positions(model)
    if longest is None:
        return None
    if prompt_tokens >= longest:
        raise DataError(
            f"the prompt has {prompt_tokens:,} tokens, and the model sees {longest:,}, the answer's included;"
            " shorten the prompt"
        )
    return longest - prompt_tokens


def generation_settings(model: Any, tokenizer: Any, prompt_tokens: int, sampling: Sampling) -> dict[str, Any]:
    """Return the keyword arguments of transformers' `generate`; an answer is never longer than the model allows."""
    left, stops = room(model, prompt_tokens), find_stops(model, tokenizer, sampling)
    settings = sampling.settings()
    if left is not None:
        settings["max_new_tokens"] = min(left, sampling.tokens)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stops.ids or [0])[0]
    return {**settings, "eos_token_id": stops.ids or None, "pad_token_id": padding}


def answer(model: Any, tokenizer: Any, ids: list[int], sampling: Sampling) -> Answer:
    """Continue `ids` until the model ends its answer or the answer is as long as it may be. Raises DataError."""
    return answer_together(model, tokenizer, [ids], sampling)[0]


@torch.inference_mode()
def answer_together(model: Any, tokenizer: Any, prompts: Sequence[list[int]], sampling: Sampling) -> list[Answer]:
    """Answer prompts as one batch, padded on the left. Raises DataError."""
    width = max(map(len, prompts))
    room(model, min(map(len, prompts)))  # none may be empty
    settings = generation_settings(model, tokenizer, width, sampling)
    inputs = torch.tensor([[settings["pad_token_id"]] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    stops = find_stops(model, tokenizer, sampling)
    criterion = StopTexts(tokenizer, stops.texts, width)
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    output = model.generate(
        inputs.to(model.device),
        attention_mask=mask.to(model.device),
        stopping_criteria=StoppingCriteriaList([criterion] if stops.texts else []),
        **settings,
    )
    rows = [row[: criterion.ended.get(number)] for number, row in enumerate(output[:, width:].tolist())]
    return [finished(tokenizer, ids, new, stops) for ids, new in zip(prompts, rows, strict=True)]


def finished(tokenizer: Any, ids: Sequence[int], new: list[int], stops: Stops) -> Answer:
    """Return new tokens as an answer: up to the first stop token or stop text."""
    said = before_stop(new, stops.ids)
    at_token = len(said) < len(new)
    raw, at_text = cut_at_stop(decoded(tokenizer, ids, said), stops.texts)
    return Answer(text=raw.strip(), stopped=at_token or at_text, raw=raw, tokens=len(said) + at_token)
