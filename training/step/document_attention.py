"""Attention within documents: a token attends to earlier tokens of its own document and to nothing else in its row.

transformers' models look up their attention function by name. The one registered here knows where documents begin and
end, from the shards, by way of `attending`. On a GPU it is one call of FlashAttention's variable-length kernel (Dao
2023, arXiv 2307.08691); elsewhere, documents of equal length are batched. A dense [row_tokens, row_tokens] mask would
take more than a third of a step's time, and a model that does not derive its mask from the positions would silently
have none.
"""

from __future__ import annotations

import inspect
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from cluster.errors import TrainingError

KERNEL: Callable[..., Any] | None = None
with suppress(ImportError):  # torch before 2.10 does not have it
    from torch.nn.attention.varlen import varlen_attn as KERNEL  # noqa: N812

KERNEL_NEEDS = (
    "torch's variable-length FlashAttention needs a GPU, bf16, heads of up to 256 and torch 2.10, and has no soft caps,"
    " sinks or dropout"
)
NAME = "shardline_documents"  # under which transformers' models look it up
KERNEL_KNOWS_GROUPS = KERNEL is not None and "enable_gqa" in inspect.signature(KERNEL).parameters


@dataclass(frozen=True)
class Segments:
    """Lengths of the documents in a micro batch, row after row; a row's padding counts as one."""

    lengths: list[int]
    starts: torch.Tensor
    """Cumulative lengths: where each segment begins, and where the last one ends, [segments + 1] int32."""

    @cached_property
    def of_length(self) -> dict[int, list[int]]:
        """The indices of the segments of each length, which are computed as one batch."""
        numbers: dict[int, list[int]] = defaultdict(list)
        for number, length in enumerate(self.lengths):
            numbers[length].append(number)
        return dict(numbers)


@dataclass
class Current:
    """The micro batch that the attention function is called for: global, as one process runs one model at a time.

    It stays set until the next micro batch, as backward may recompute activations, on one of autograd's threads.
    """

    segments: Segments | None = None
    kernel: bool | None = None
    """Whether the variable-length kernel is used: where it can be (None), always (True), or never (False)."""
    unsupported: str | None = None
    """What a model asked for that is not implemented here. Noted, not raised: a rank that leaves a forward pass under
    ZeRO-3 would leave the others waiting in a gather."""


CURRENT = Current()


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention's output [rows, row_tokens, heads, value width]: transformers' attention interface.

    Queries are [rows, heads, row_tokens, width]; keys and values may have fewer heads. Scale, dropout, sliding window,
    soft cap and attention sinks are applied; anything else a model asks for is noted in `CURRENT.unsupported`.
    """
    if CURRENT.segments is None:
        raise RuntimeError(
            "attention by documents was called without the documents of the micro batch; call attending() first"
        )
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
    attention = attended_by_kernel if uses_kernel(query, value, rule) else attended
    output = attention(query, key, value, CURRENT.segments, rule)
    return output.reshape(rows, row_tokens, *output.shape[1:]), None


def uses_kernel(query: torch.Tensor, value: torch.Tensor, rule: Rule) -> bool:
    """Return whether the variable-length kernel is used, and note in CURRENT if it had to be and cannot."""
    can = has_kernel(query, value, rule)
    if CURRENT.kernel and not can:
        CURRENT.unsupported = KERNEL_NEEDS
        if torch.is_grad_enabled():  # in a step: the check has no dropout
            raise TrainingError(f"train.attention: varlen: {KERNEL_NEEDS}; set auto")
    return can and CURRENT.kernel is not False


def note_unsupported(module: nn.Module, attention_mask: torch.Tensor | None, settings: dict[str, Any]) -> None:
    """Note in CURRENT what a model asks for that this attention would silently ignore."""
    if attention_mask is not None:
        CURRENT.unsupported = "it makes a mask of its own"
    if settings.get("position_bias") is not None:
        CURRENT.unsupported = "it adds a bias to the scores"
    if settings.get("is_causal", getattr(module, "is_causal", True)) is False:
        CURRENT.unsupported = "it looks at later tokens"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How scores become weights. `window` counts the tokens seen, including the token itself; `sinks` are [heads]."""

    scale: float | None
    dropout: float
    window: int | None
    soft_cap: float | None
    sinks: torch.Tensor | None


def attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, rule: Rule
) -> torch.Tensor:
    """Return the output [tokens, heads, value width] of causal attention within each segment; inputs are alike.

    Documents of one length are stacked into one batch, so the number of attention calls is that of distinct lengths and
    no mask is needed. One split and one concatenation, because the backward of each slice would allocate a tensor of
    the size of all tokens.
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
    """Return whether torch's variable-length FlashAttention can do this: it has no caps, sinks, dropout or fp32."""
    is_plain = rule.soft_cap is None and rule.sinks is None and not rule.dropout
    fits = query.shape[-1] == value.shape[-1] <= 256 and query.dtype in (torch.bfloat16, torch.float16)
    return is_plain and fits and query.is_cuda and KERNEL is not None


def attended_by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, rule: Rule
) -> torch.Tensor:
    """Return what `attended` returns, from one call of variable-length FlashAttention for all segments, on a GPU.

    The kernel takes the tokens of all segments in one dimension, with the cumulative lengths in `starts`. Its window is
    (tokens before, tokens after), -1 being unlimited; the token itself is not counted, hence window - 1.
    """
    if KERNEL is None:
        raise RuntimeError("this torch has no variable-length attention; has_kernel() must be checked first")
    starts, longest = segments.starts, max(segments.lengths)
    groups = query.shape[1] // key.shape[1]
    settings: dict[str, Any] = {"scale": rule.scale, "window_size": (-1 if rule.window is None else rule.window - 1, 0)}
    if groups > 1 and KERNEL_KNOWS_GROUPS:
        settings["enable_gqa"] = True
    elif groups > 1:  # torch up to 2.11: repeat the keys and values for each query head of a group
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    output: torch.Tensor = KERNEL(query, key, value, starts, starts, longest, longest, **settings)
    return output


def rule_of_length(rule: Rule, length: int) -> Rule:
    """Return the rule without its window if documents of this length fit into it: then no mask is needed."""
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
    """Return which tokens each token sees, [tokens, tokens] bool: itself and earlier ones, at most `window` in all."""
    mask = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


def causal_by_scores(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Return the same with capped scores (Gemma 2, arXiv 2408.00118) or attention sinks (gpt-oss, arXiv 2508.10925).

    PyTorch's fused attention has neither, so the scores are computed in full, in transformers' order of operations. A
    sink is one more logit per head in the softmax, whose weight is then dropped: the rest sums to less than one.
    """
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


# Without a mask function of the same name, transformers makes no mask: the attention function knows the segments. One
# that returned None would be called after a search for documents in the positions, for which the host waits.
AttentionInterface.register(NAME, attend)


def leave_uncompiled() -> None:
    """Make compiled code call attention by documents as it is. Loads torch's compiler, so only where it is used."""
    AttentionInterface.register(NAME, torch.compiler.disable(attend))  # type: ignore[no-untyped-call]


def can_attend_by_documents(model: PreTrainedModel) -> bool:
    """Return whether the model's layers look up their attention function by name."""
    return bool(model._can_set_attn_implementation())


def attend_with(model: PreTrainedModel, name: str) -> None:
    """Make the model's layers use the attention function of this name."""
    if can_attend_by_documents(model):
        model.set_attn_implementation(name)


def starts_of(lengths: Sequence[int]) -> torch.Tensor:
    """Return where each segment begins, and where the last one ends, [segments + 1] int32."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def attending(lengths: list[int] | None, starts: torch.Tensor | None = None) -> None:
    """Set the segments that the model's next forward pass is for; None clears them.

    `starts` are those of `starts_of`, on the device of the model.
    """
    CURRENT.segments = None if lengths is None else Segments(lengths, starts_of(lengths) if starts is None else starts)
