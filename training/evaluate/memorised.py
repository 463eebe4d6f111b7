"""Whether replies repeat the training split word for word: an exact check of long runs of tokens over the shards.

Every run of SPAN_TOKENS tokens of a reply is hashed; then all rows of the training split are hashed in the same way, by
doubling: the hash of a run of 2n tokens follows from those of its two halves. Hits are compared token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.progress import counted
from data_prep.shards import ShardReader

SPAN_TOKENS = 50  # as in Carlini et al. 2023, "Quantifying Memorization Across Neural Language Models"
FACTOR = np.uint64(0x9E3779B97F4A7C15)
ROWS_AT_ONCE = 256

Hashes = npt.NDArray[np.uint64]


def memorised_spans(reader: ShardReader, replies: Sequence[Sequence[int]]) -> list[int | None]:
    """Return for each reply a row of the split that has a span of it verbatim, None if no row has.

    Replies shorter than a span have none.
    """
    wanted: dict[int, list[tuple[int, int]]] = {}
    for number, ids in enumerate(replies):
        for start, value in enumerate(span_hashes(np.array(ids, dtype=np.uint64)).tolist()):
            wanted.setdefault(value, []).append((number, start))
    found: list[int | None] = [None] * len(replies)
    if not wanted:
        return found
    keys = np.array(sorted(wanted), dtype=np.uint64)
    firsts = range(0, len(reader), ROWS_AT_ONCE)
    sizes = [min(ROWS_AT_ONCE, len(reader) - first) for first in firsts]
    for first, size in zip(
        counted(firsts, sizes, "replies compared with the training rows", len(reader), "rows"), sizes, strict=True
    ):
        rows = reader.rows(range(first, first + size)).input_ids
        hashes = span_hashes(rows.astype(np.uint64))
        for row, start in np.argwhere(np.isin(hashes, keys)).tolist():
            span = rows[row, start : start + SPAN_TOKENS].tolist()
            for number, place in wanted[int(hashes[row, start])]:
                if found[number] is None and list(replies[number][place : place + SPAN_TOKENS]) == span:
                    found[number] = first + row
    return found


def span_hashes(ids: npt.NDArray[np.uint64]) -> Hashes:
    """Return the hash of every span of tokens in the last dimension; none if it is shorter than a span."""
    count = ids.shape[-1] - SPAN_TOKENS + 1
    if count <= 0:
        return ids[..., :0]
    with np.errstate(over="ignore"):
        power, factor, done = ids + np.uint64(1), FACTOR, 0
        total = np.zeros((*ids.shape[:-1], count), dtype=np.uint64)
        for bit in range(SPAN_TOKENS.bit_length()):
            if SPAN_TOKENS >> bit & 1:
                total = total * factor + power[..., done : done + count]
                done += 1 << bit
            power = power[..., : -(1 << bit)] * factor + power[..., 1 << bit :]
            factor = factor * factor
    return total


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return a reply's ids as the rows would have them."""
    return list(tokenizer.encode(text, add_special_tokens=False))
