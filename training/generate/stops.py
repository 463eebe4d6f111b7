"""Where an answer ends: at a stop token, at a stop text, or when its reader has left."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Any

import torch
from transformers import StoppingCriteria

from training.generate.token_text import decoded
from training.models.stop_tokens import stop_token_ids


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids that end an answer: those of the tokenizer and its template, and of generation_config.json."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    return list(dict.fromkeys([*stop_token_ids(tokenizer), *(token for token in own if token is not None)]))


def split_stops(tokenizer: Any, stops: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the added tokens among stop texts as ids, since decoded text has no special ones, and the other texts."""
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    return [added[stop] for stop in stops if stop in added], [stop for stop in stops if stop not in added]


def before_stop(new: Sequence[int], stops: Collection[int]) -> list[int]:
    """Return the ids up to the first stop token, which has no text in an answer, special or not."""
    return list(takewhile(lambda token: token not in stops, new))


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return a text up to the first stop text in it, and whether there is one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def held_back(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of a text may turn out to be the beginning of a stop text."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    tails = range(min(longest, len(text)), 0, -1)
    return next((size for size in tails if any(stop.startswith(text[-size:]) for stop in stops)), 0)


class StopTexts(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed
    """Ends each row of a batch at a stop text in its answer, and notes how many tokens the row had then.

    transformers' own `stop_strings` also match a text that begins in the prompt, which the answer then lacks.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompt_tokens: int) -> None:
        self.tokenizer, self.stops, self.prompt_tokens = tokenizer, stops, prompt_tokens
        self.ended: dict[int, int] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for row, ids in enumerate(input_ids.tolist()):
            new = ids[self.prompt_tokens :]
            if row not in self.ended and cut_at_stop(decoded(self.tokenizer, ids[: -len(new)], new), self.stops)[1]:
                self.ended[row] = len(new)
        return torch.tensor([row in self.ended for row in range(len(input_ids))], device=input_ids.device)


class ReaderLeft(StoppingCriteria):  # type: ignore[misc]
    """Ends all answers once the event is set."""

    def __init__(self, left: threading.Event) -> None:
        self.left = left

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.left.is_set(), device=input_ids.device)
