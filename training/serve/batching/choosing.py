"""Choose a request's next token as transformers' `generate` would, for each request by its own settings."""

from __future__ import annotations

from typing import Any

import torch

from training.generate.sampling import Sampling


class Chooser:
    """Chooses the tokens of one request.

    The processors (temperature, top_p, penalties, and what else the model's generation_config.json asks for) are those
    that `generate` would make, made by its own methods: transformers has no public way.
    """

    def __init__(self, model: Any, sampling: Sampling, prompt_tokens: int, stops: list[int]) -> None:
        settings = {**sampling.settings(), "eos_token_id": stops or None}
        config, _ = model._prepare_generation_config(None, **settings)
        model._prepare_special_tokens(config, True, device=model.device)
        self.samples = bool(config.do_sample)
        self.processors = model._get_logits_processor(
            config, input_ids_seq_length=prompt_tokens, device=str(model.device)
        )
        self.generator = torch.Generator(device=model.device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)

    @property
    def is_plain(self) -> bool:
        """Whether the choice is the likeliest token and nothing else."""
        return not self.samples and not self.processors

    def choose(self, ids: list[int], logits: torch.Tensor) -> int:
        """Return the token that follows `ids`, by the model's logits [vocab] for it."""
        scores = logits.float()[None]  # [1, vocab]
        if self.processors:
            scores = self.processors(torch.tensor([ids], device=logits.device), scores)
        if not self.samples:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=self.generator))
