"""Passages that also occur in another document: an anthology, another edition, a book that quotes at length.

A passage is part of a document and has no sketch of its own, so it is compared by its tokens: the share of its runs of
RUN_TOKENS tokens that another document has (containment: Broder 1997). What is copied word for word has the same tokens
but near the borders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.arrays import Integers, mix
from data_prep.clean.document_marks import places
from data_prep.encode.encoded_slices import EncodedSlice

RUN_TOKENS = 16
SHARE = 0.5  # of the runs of a passage or of the other document, whichever has fewer
FACTOR = 0x9E3779B97F4A7C15  # odd

Hashes = npt.NDArray[np.uint64]


def quoted(
    tables: Sequence[EncodedSlice], passages: Mapping[int, tuple[int, int]], kept: npt.NDArray[np.bool_]
) -> set[int]:
    """Return the passages of which half occurs in another kept document, or that contain half of one.

    A passage is given by its document's number, and where it begins and ends. Takes 8 bytes for each of their tokens,
    and looks once at every token of the corpus.
    """
    if not passages:
        return set()
    # The runs of all passages are one sorted array, each once for each passage, with its passage beside it; every slice
    # is looked up in it as a whole.
    numbers = np.array(sorted(passages), np.int64)
    texts = zip(numbers.tolist(), documents_of(tables, numbers), strict=True)
    runs = [np.unique(runs_of(ids[slice(*passages[number])])) for number, ids in texts]
    owner = np.repeat(np.arange(len(numbers)), list(map(len, runs)))
    every = np.concatenate(runs)
    order = np.argsort(every, kind="stable")
    every, owner = every[order], owner[order]
    sizes = np.array(list(map(len, runs)))
    found: set[int] = set()
    before = 0
    for table in tables:
        lines, passage, common = met(table, kept[before : before + len(table.part)], every, owner, len(numbers))
        fewer = np.minimum(np.diff(table.first)[lines] - RUN_TOKENS + 1, sizes[passage])
        here = (common >= SHARE * fewer) & (before + lines != numbers[passage])
        found |= set(numbers[passage[here]].tolist())
        before += len(table.part)
    return found


def met(
    table: EncodedSlice, kept: npt.NDArray[np.bool_], every: Hashes, owner: Integers, passages: int
) -> tuple[Integers, Integers, Integers]:
    """Return the kept documents of a slice that share runs with passages: line, passage, and how many distinct runs.

    `every` is sorted, and `owner` says of which passage each run is.
    """
    # All runs of the slice are looked up at once; one that goes over a document's end is of none. Few are left, those
    # that a passage has too: each once for its document, and counted by document and passage.
    runs = runs_of(table.ids)
    line = np.searchsorted(table.first, np.arange(len(runs)), side="right") - 1
    first = np.searchsorted(every, runs, "left")
    hit = (first < len(every)) & kept[line] & (np.arange(len(runs)) + RUN_TOKENS <= table.first[line + 1])
    hit[hit] = every[first[hit]] == runs[hit]
    line, run = np.unique(np.stack([line[hit], first[hit]]), axis=1)
    counts = np.searchsorted(every, every[run], "right") - run
    both = np.repeat(line, counts) * passages + owner[places(run, counts)]
    pairs, common = np.unique(both, return_counts=True)
    return pairs // passages, pairs % passages, common


def documents_of(tables: Sequence[EncodedSlice], numbers: Integers) -> Iterator[npt.NDArray[Any]]:
    """Yield the token ids of the documents of these numbers, which are sorted."""
    before = 0
    for table in tables:
        here = numbers[(numbers >= before) & (numbers < before + len(table.part))] - before
        for line in here.tolist():
            yield table.ids[table.first[line] : table.first[line + 1]]
        before += len(table.part)


def runs_of(ids: npt.NDArray[Any]) -> Hashes:
    """Return the hash of each run of tokens; a text shorter than a run has none."""
    # A run's hash is a polynomial in its ids (Karp, Rabin 1987), taken for all runs at once: for each place of a run
    # the ids, shifted.
    count = max(0, len(ids) - RUN_TOKENS + 1)
    total = np.zeros(count, np.uint64)
    for step in range(RUN_TOKENS):
        total = total * np.uint64(FACTOR) + ids[step : step + count].astype(np.uint64)
    return mix(total)
