"""Attention by documents: a token sees what stands before it in its own document, and nothing else of its row.

transformers' models ask for their attention by name. The function registered here gets the boundaries of documents from
the shards, by way of `attending`. A dense mask of [row_tokens, row_tokens] in its place takes more than a third of a
step's time, and a model whose mask is not made from the positions would do without one in silence.
"""

from __future__ import annotations

import inspect
import itertools
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

KERNEL: Callable[..., Any] | None = None
with suppress(ImportError):  # before torch 2.10
    from torch.nn.attention.varlen import varlen_attn as KERNEL  # noqa: N812

NAME = "shardline_documents"  # as transformers' models ask for it
KERNEL_KNOWS_GROUPS = KERNEL is not None and "enable_gqa" in inspect.signature(KERNEL).parameters


@dataclass(frozen=True)
class Segments:
    """Lengths of the documents in a micro batch, its rows one after the other; a row's padding is one of them."""

    lengths: list[int]
    device: torch.device

    @cached_property
    def starts(self) -> torch.Tensor:
        """Where the segments begin and, last, where the last one ends, [segments + 1] int32."""
        return torch.tensor([0, *itertools.accumulate(self.lengths)], dtype=torch.int32, device=self.device)

    @cached_property
    def of_length(self) -> dict[int, list[int]]:
        """The numbers of the segments of each length: those are attended to together."""
        numbers: dict[int, list[int]] = defaultdict(list)
        for number, length in enumerate(self.lengths):
            numbers[length].append(number)
        return dict(numbers)


@dataclass
class Current:
    """What the attention function is called for. One process runs one model at a time.

    It stays until the next micro batch: activations may be computed again in backward, on a thread of autograd's.
    """

    segments: Segments | None = None
    unsupported: str | None = None
    """What a model asked for that is not done here; a forward pass under ZeRO-3 must not be broken off."""


CURRENT = Current()


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention's output [rows, row_tokens, heads, value width], as transformers' interface wants it.

    Queries are [rows, heads, row_tokens, width], keys and values may have fewer heads. Scale, dropout, sliding window,
    soft cap and attention sinks are honoured; what else a model asks for is noted in CURRENT.
    """
    if CURRENT.segments is None:
        raise RuntimeError("attention by documents was called without the documents of the micro batch")
    note_unsupported(module, attention_mask, settings)
    rule = Rule(
        scale=settings.get("scaling"),
        dropout=settings.get("dropout") or 0.0,
        window=settings.get("sliding_window"),
        soft_cap=settings.get("softcap"),
        sinks=settings.get("s_aux"),
    )
    rows, _, row_tokens, _ = query.shape
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    attention = attended_by_kernel if has_kernel(query, value, rule) else attended
    output = attention(query, key, value, CURRENT.segments, rule)
    return output.reshape(rows, row_tokens, *output.shape[1:]), None


def note_unsupported(module: nn.Module, attention_mask: torch.Tensor | None, settings: dict[str, Any]) -> None:
    """Note what would be left out in silence."""
    if attention_mask is not None:
        CURRENT.unsupported = "it makes a mask of its own"
    if settings.get("position_bias") is not None:
        CURRENT.unsupported = "it adds a bias to the scores"
    if settings.get("is_causal", getattr(module, "is_causal", True)) is False:
        CURRENT.unsupported = "it looks at later tokens"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a model's scores become weights. `window` counts tokens, the token itself included; sinks are [heads]."""

    scale: float | None
    dropout: float
    window: int | None
    soft_cap: float | None
    sinks: torch.Tensor | None


def attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, rule: Rule
) -> torch.Tensor:
    """Return the output [tokens, heads, value width] of causal attention within each segment; inputs are likewise.

    Documents are taken apart by one split and put together by one concatenation: slices would each add a tensor of all
    tokens to the backward pass.
    """
    parts = [torch.split(tensor, segments.lengths) for tensor in (query, key, value)]
    outputs: list[torch.Tensor | None] = [None] * len(segments.lengths)
    for length, numbers in segments.of_length.items():
        queries, keys, values = (torch.stack([part[n] for n in numbers]).transpose(1, 2) for part in parts)
        output = causal(queries, keys, values, rule_of_length(rule, length)).transpose(1, 2)
        for number, document in zip(numbers, output.unbind(), strict=True):
            outputs[number] = document
    return torch.cat([output for output in outputs if output is not None])


def has_kernel(query: torch.Tensor, value: torch.Tensor, rule: Rule) -> bool:
    """Tell whether torch's FlashAttention over segments can do this: it knows no caps, sinks, dropout or fp32."""
    is_plain = rule.soft_cap is None and rule.sinks is None and not rule.dropout
    fits = query.shape[-1] == value.shape[-1] <= 256 and query.dtype in (torch.bfloat16, torch.float16)
    return is_plain and fits and query.is_cuda and KERNEL is not None


def attended_by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, rule: Rule
) -> torch.Tensor:
    """Return what `attended` returns, from one call of FlashAttention for all segments, on a GPU."""
    assert KERNEL is not None
    starts, longest = segments.starts, max(segments.lengths)
    groups = query.shape[1] // key.shape[1]
    settings: dict[str, Any] = {"scale": rule.scale, "window_size": (-1 if rule.window is None else rule.window - 1, 0)}
    if groups > 1 and KERNEL_KNOWS_GROUPS:
        settings["enable_gqa"] = True
    elif groups > 1:  # torch 2.11
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    output: torch.Tensor = KERNEL(query, key, value, starts, starts, longest, longest, **settings)
    return output


def rule_of_length(rule: Rule, length: int) -> Rule:
    """Return the rule without a window that no document of this length notices."""
    if rule.window is None or rule.window < length:
        return rule
    return Rule(scale=rule.scale, dropout=rule.dropout, window=None, soft_cap=rule.soft_cap, sinks=rule.sinks)


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Return causal attention [documents, heads, tokens, width] over documents of one length."""
    grouped = query.shape[1] != key.shape[1]
    if rule.soft_cap is not None or rule.sinks is not None:
        return causal_by_scores(query, key, value, rule)
    mask = None if rule.window is None else seen(query.shape[2], rule.window, query.device)
    return F.scaled_dot_product_attention(
        query, key, value, mask, rule.dropout, is_causal=mask is None, scale=rule.scale, enable_gqa=grouped
    )


def seen(tokens: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which tokens each token sees, [tokens, tokens]: itself and those before it, at most `window` in all."""
    mask = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


def causal_by_scores(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Return the same where scores are capped (Gemma 2) or a sink takes its share of them (gpt-oss)."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = (query @ key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if rule.scale is None else rule.scale)
    if rule.soft_cap is not None:
        scores = torch.tanh(scores / rule.soft_cap) * rule.soft_cap
    scores = scores.float().masked_fill(~seen(query.shape[2], rule.window, query.device), -torch.inf)
    if rule.sinks is not None:
        sinks = rule.sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1)
    return F.dropout(weights.to(value.dtype), rule.dropout) @ value


def no_mask(*arguments: Any, **settings: Any) -> None:
    """Make no mask: the attention function knows the documents."""


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, no_mask)


def can_attend_by_documents(model: PreTrainedModel) -> bool:
    """Tell whether the model's class asks transformers for its attention by name."""
    return bool(model._can_set_attn_implementation())


def attend_with(model: PreTrainedModel, name: str) -> None:
    """Let the model's layers ask for the attention of this name from now on."""
    if can_attend_by_documents(model):
        model.set_attn_implementation(name)


def attending(lengths: list[int] | None, device: torch.device | None = None) -> None:
    """Say which documents the next call of the model is for; None: for none."""
    CURRENT.segments = None if lengths is None else Segments(lengths, device or torch.device("cpu"))
