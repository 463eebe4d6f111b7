"""Passages that stand in another document too: an anthology, another edition, a book that quotes at length.

A passage is part of a document and has no sketch of its own, so it is compared by its tokens: the share of its runs of
RUN_TOKENS tokens that another document has. What is copied word for word has the same tokens but near the borders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.marked import places
from data_prep.packing import mix
from data_prep.pouring import Integers
from data_prep.slices import EncodedSlice

RUN_TOKENS = 16
SHARE = 0.5  # of the runs of a passage or of the other document, whichever has fewer
FACTOR = 0x9E3779B97F4A7C15  # odd

Hashes = npt.NDArray[np.uint64]


def quoted(
    tables: Sequence[EncodedSlice], passages: Mapping[int, tuple[int, int]], kept: npt.NDArray[np.bool_]
) -> set[int]:
    """Return the passages of which half stands in another kept document, or that hold half of one.

    A passage is given by its document's number, and where it begins and ends. Takes 8 bytes for each of their tokens,
    and looks once at every token of the corpus.
    """
    if not passages:
        return set()
    numbers = np.array(sorted(passages), np.int64)
    runs = [np.unique(runs_of(ids[slice(*passages[number])])) for number, ids in documents_of(tables, set(passages))]
    owner = np.repeat(np.arange(len(numbers)), list(map(len, runs)))
    every = np.concatenate(runs)
    order = np.argsort(every, kind="stable")
    every, owner = every[order], owner[order]
    found: set[int] = set()
    for number, ids in documents_of(tables, set(np.flatnonzero(kept).tolist())):
        own = np.unique(runs_of(ids))
        shares = common_runs(every, owner, own, len(numbers)) / [max(1, min(len(one), len(own))) for one in runs]
        found |= {int(other) for other in numbers[shares >= SHARE] if other != number}
    return found


def common_runs(every: Hashes, owner: Integers, runs: Hashes, passages: int) -> Integers:
    """Return how many of a document's runs each passage has; `every` is sorted, `owner` whose run each is."""
    first, last = np.searchsorted(every, runs, "left"), np.searchsorted(every, runs, "right")
    hit = last > first
    return np.bincount(owner[places(first[hit], (last - first)[hit])], minlength=passages)


def documents_of(tables: Sequence[EncodedSlice], numbers: set[int]) -> list[tuple[int, npt.NDArray[Any]]]:
    """Return the numbers and token ids of the chosen documents, in their order."""
    found = []
    before = 0
    for table in tables:
        for line in range(len(table.part)):
            if before + line in numbers:
                found.append((before + line, table.ids[table.first[line] : table.first[line + 1]]))
        before += len(table.part)
    return found


def runs_of(ids: npt.NDArray[Any]) -> Hashes:
    """Return the hash of each run of tokens; a text shorter than a run has none."""
    # A run's hash is a polynomial in its ids, taken for all runs at once: for each place of a run the ids, shifted.
    count = max(0, len(ids) - RUN_TOKENS + 1)
    total = np.zeros(count, np.uint64)
    for step in range(RUN_TOKENS):
        total = total * np.uint64(FACTOR) + ids[step : step + count].astype(np.uint64)
    return mix(total)
