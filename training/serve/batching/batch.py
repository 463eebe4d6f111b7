"""Requests that one model answers together, a token each in every step.

`Together` is one forward pass for all. Their prompts differ in length, so the shorter ones have padding on the left,
which the attention mask hides; a request joins and leaves between two steps. This cannot be done for models whose state
is not keys and values of every token (Mamba and its hybrids), that ignore the mask, or whose positions mean something
else once a text is long (longrope), which a batch decides for all its rows. `Apart` gives each request a cache and a
forward pass of its own, whatever the model keeps in it. `batch_check.py` compares both with the model itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from training.serve.batching.requests import Request
from training.step.packed_model import length_border


class Together:
    """All requests in one left-padded batch."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.rows: list[Request] = []
        self.cache: Any = None
        self.mask = torch.empty(0)  # [rows, cached tokens], 0 where there is padding
        parameters = inspect.signature(model.forward).parameters
        self.cache_name = name_of_cache(parameters)
        self.takes_positions = "position_ids" in parameters
        self.only_last = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    def join(self, row: Request) -> torch.Tensor:
        """Add a request; return the logits [vocab] for its next token. If it raises, the others are as before."""
        ids = torch.tensor([row.ids + row.tokens], device=self.model.device)
        cache = DynamicCache()  # without the configuration: keys of a sliding window are kept too, and masked
        mask = torch.ones_like(ids)
        logits = self.forward(ids, mask, cache)
        if not self.rows:
            self.cache, self.mask = cache, mask
        else:
            self.merge(cache, mask)
        self.rows.append(row)
        return logits[0]

    def step(self) -> torch.Tensor:
        """Return the logits [rows, vocab] for the next token of each request."""
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self.model.device)
        self.mask = pad(self.mask, (0, 1), value=1)
        return self.forward(ids, self.mask, self.cache)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        more: dict[str, Any] = dict(self.only_last)
        if self.takes_positions:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            more["position_ids"] = positions[:, -ids.shape[1] :]
        more[self.cache_name] = cache
        output = self.model(input_ids=ids, attention_mask=mask, use_cache=True, **more)
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def merge(self, cache: Any, mask: torch.Tensor) -> None:
        """Append a cache of one row, both padded to the longer."""
        width = max(self.mask.shape[1], mask.shape[1])
        for ours, theirs in zip(self.cache.layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                both = [getattr(layer, name) for layer in (ours, theirs)]  # [rows, heads, tokens, head size]
                setattr(ours, name, torch.cat([pad(part, (0, 0, width - part.shape[2], 0)) for part in both]))
        self.mask = torch.cat([pad(part, (width - part.shape[1], 0)) for part in (self.mask, mask)])

    def remove(self, gone: set[Request]) -> None:
        """Take requests out, and the padding that only they needed."""
        kept = [number for number, row in enumerate(self.rows) if row not in gone]
        self.rows = [self.rows[number] for number in kept]
        if not self.rows:
            self.clear()
            return
        rows = torch.tensor(kept, device=self.mask.device)
        mask = self.mask[rows]
        first = int(mask.any(0).int().argmax())
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[rows, :, first:], layer.values[rows, :, first:]
        self.mask = mask[:, first:]

    def clear(self) -> None:
        self.rows, self.cache = [], None


class Apart:
    """Each request with a cache and a forward pass of its own."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.rows: list[Request] = []
        self.caches: dict[Request, Any] = {}
        self.switch = length_border(model)
        self.cache_name = name_of_cache(inspect.signature(model.forward).parameters)

    def join(self, row: Request) -> torch.Tensor:
        """Add a request; return the logits [vocab] for its next token. If it raises, the others are as before."""
        logits = self.read(row)
        self.rows.append(row)
        return logits

    def step(self) -> torch.Tensor:
        """Return the logits [rows, vocab] for the next token of each request."""
        return torch.stack([self.logits_after(row) for row in self.rows])

    def logits_after(self, row: Request) -> torch.Tensor:
        if self.switch is not None and len(row.ids) + len(row.tokens) == self.switch + 1:
            return self.read(row)  # its keys were made with the positions of a short text
        return self.forward(row.tokens[-1:], self.caches[row])

    def read(self, row: Request) -> torch.Tensor:
        """Forward the whole text of a request into a new cache."""
        cache = DynamicCache(config=self.model.config.get_text_config())
        logits = self.forward(row.ids + row.tokens, cache)
        self.caches[row] = cache
        return logits

    def forward(self, ids: list[int], cache: Any) -> torch.Tensor:
        inputs = torch.tensor([ids], device=self.model.device)
        logits: torch.Tensor = self.model(input_ids=inputs, use_cache=True, **{self.cache_name: cache}).logits[0, -1]
        return logits

    def remove(self, gone: set[Request]) -> None:
        """Take requests out."""
        self.rows = [row for row in self.rows if row not in gone]
        self.caches = {row: self.caches[row] for row in self.rows}

    def clear(self) -> None:
        self.rows, self.caches = [], {}


Batch = Together | Apart


def name_of_cache(parameters: Collection[str]) -> str:
    """Return what a model's `forward` calls its cache: from transformers 5.24 on it is `cache` for all."""
    return next((name for name in ("cache", "past_key_values", "cache_params") if name in parameters), "cache")
