"""Where a document that is longer than a row is split: after a turn, a paragraph or a line."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.packing import Integers

LINE, PARAGRAPH = 1, 2  # what the text of a token ends
NEWLINES = ("Ċ", "\n", "<0x0A>")  # as byte-level, plain and byte-fallback vocabularies write it
# Which part of a row a split may leave to other documents. Turns matter most: an answer belongs to what was asked.
TURN_SHARE, PARAGRAPH_SHARE, LINE_SHARE = 2, 128, 128
REST_SHARE = 4  # of a row: a longer last piece is halved


def line_ends(tokenizer: Any) -> npt.NDArray[np.uint8]:
    """Return for each id whether its token ends a LINE or a PARAGRAPH, else 0."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    result = np.zeros(max(vocabulary.values()) + 1, dtype=np.uint8)
    for token, number in vocabulary.items():
        if token.endswith(NEWLINES):
            result[number] = PARAGRAPH if token.endswith(("ĊĊ", "\n\n")) else LINE
    return result


def piece_starts(
    ids: npt.NDArray[Any], mask: npt.NDArray[np.uint8], row_tokens: int, ends: npt.NDArray[np.uint8]
) -> Integers:
    """Return where the pieces of one document begin, none of them longer than a row; the first begins at 0."""
    kinds = ends[ids]
    lines = kinds > 0
    paragraphs = (kinds == PARAGRAPH) | (lines & np.append(False, lines[:-1]))
    answers = np.flatnonzero((mask[:-1] == 1) & (mask[1:] == 0)) + 1  # where what follows an answer begins
    turns = answers + lines[answers]  # a line's end after it goes with it
    choices = [
        (turns, row_tokens // TURN_SHARE),
        (np.flatnonzero(paragraphs) + 1, row_tokens // PARAGRAPH_SHARE),
        (np.flatnonzero(lines) + 1, row_tokens // LINE_SHARE),
    ]
    starts = [0]
    while len(ids) - starts[-1] > row_tokens:
        starts.append(next_start(starts[-1] + row_tokens, choices))
    rest = len(ids) - starts[-1]
    if rest > row_tokens // REST_SHARE:  # halves fill rows up where whole rests leave gaps: 1.5 % on specifications
        starts.append(next_start(starts[-1] + rest // 2, choices))
    return np.array(sorted(set(starts)), dtype=np.int64)


def next_start(limit: int, choices: list[tuple[Integers, int]]) -> int:
    """Return the last place up to `limit` of the first kind of places that has one near enough to it."""
    for places, near in choices:
        found = int(np.searchsorted(places, limit, side="right")) - 1
        if found >= 0 and limit - int(places[found]) < near:
            return int(places[found])
    return limit
