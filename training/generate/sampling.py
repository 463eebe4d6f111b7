"""How tokens are chosen."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cluster.config_loading import Section


class Sampling(Section):
    """How an answer's tokens are chosen. With `temperature` 0, each is the likeliest one."""

    tokens: int = Field(default=96, gt=0)
    """Longest answer, in tokens."""
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments of transformers' `generate`."""
        chosen = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        return {"max_new_tokens": self.tokens, **chosen}
