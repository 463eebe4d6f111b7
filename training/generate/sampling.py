"""How tokens are chosen."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from cluster.config_loading import Section

COLDEST = 1e-5  # divided by less, logits overflow
StopText = Annotated[str, Field(min_length=1)]


class Sampling(Section):
    """How an answer's tokens are chosen. With `temperature` 0, each is the likeliest one.

    These settings alone decide: those in a model's generation_config.json are not used.
    """

    tokens: int = Field(default=96, gt=0)
    """Longest answer, in tokens."""
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Divides the logits before a token is drawn; 0, or less than 1e-5, draws nothing and takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens that have this probability together; 1 draws from all."""
    top_k: int = Field(default=0, ge=0)
    """Draw from this many of the likeliest tokens; 0 draws from all."""
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Above 1, tokens that the prompt or the answer already has become less likely."""
    stop: list[StopText] = Field(default_factory=list)
    """Texts that end an answer; an answer does not contain them."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Makes drawn answers repeatable; default: another answer each time."""

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.temperature >= COLDEST

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments of transformers' `generate`, without the stop texts and the seed."""
        common = {"max_new_tokens": self.tokens, "repetition_penalty": self.repetition_penalty, "num_beams": 1}
        if not self.draws:
            return {"do_sample": False, **common}
        drawing = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {"do_sample": True, **drawing, **common}
