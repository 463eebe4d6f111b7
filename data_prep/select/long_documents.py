"""Where a document that is longer than a row is split: after a turn, a paragraph or a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.arrays import Integers

Ends = Callable[[], npt.NDArray[np.uint8]]  # `line_ends` of a tokenizer, when it is asked for

LINE, PARAGRAPH = 1, 2  # what the text of a token ends
NEWLINES = ("Ċ", "\n", "<0x0A>")  # as byte-level, plain and byte-fallback vocabularies write it
TURN_SHARE = 2  # of a row: a split may leave so much empty to end at a turn, since an answer belongs with its question
NEAR_SHARE = 128  # of a row


def cut_tolerance(row_tokens: int) -> int:
    """Return how many tokens a cut may go back to the end of a line; a row that lacks no more is full."""
    return max(1, row_tokens // NEAR_SHARE)


@dataclass(frozen=True, slots=True)
class Split:
    """Where the segments of a document that is longer than a row begin; the first begins at 0.

    `places` are where its last segment is best cut once more if that fills a row up; None: it stays whole.
    """

    starts: Integers
    places: Integers | None


def line_ends(tokenizer: Any) -> npt.NDArray[np.uint8]:
    """Return for each id whether its token ends a LINE or a PARAGRAPH, else 0."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    result = np.zeros(max(vocabulary.values()) + 1, dtype=np.uint8)
    for token, number in vocabulary.items():
        if token.endswith(NEWLINES):
            result[number] = PARAGRAPH if token.endswith(("ĊĊ", "\n\n")) else LINE
    return result


def split_document(
    ids: npt.NDArray[Any], mask: npt.NDArray[np.uint8], row_tokens: int, ends: npt.NDArray[np.uint8]
) -> Split:
    """Return where one document is split into segments, none of them longer than a row.

    Only running text, all of which is trained, may be cut once more: an answer stays with what was asked.
    """
    kinds = ends[ids]
    lines = kinds > 0
    paragraphs = (kinds == PARAGRAPH) | (lines & np.append(False, lines[:-1]))
    answers = np.flatnonzero((mask[:-1] == 1) & (mask[1:] == 0)) + 1  # where what follows an answer begins
    turns = answers + lines[answers]  # a line's end after it goes with it
    after_paragraphs, after_lines = np.flatnonzero(paragraphs) + 1, np.flatnonzero(lines) + 1
    near = cut_tolerance(row_tokens)
    choices = [(turns, row_tokens // TURN_SHARE), (after_paragraphs, near), (after_lines, near)]
    starts = [0]
    while len(ids) - starts[-1] > row_tokens:
        starts.append(next_start(starts[-1] + row_tokens, choices))
    is_running_text = bool(mask[1:].all())
    return Split(
        starts=np.array(starts, dtype=np.int64),
        places=best_places(after_lines[after_lines > starts[-1]], paragraphs, near) if is_running_text else None,
    )


def best_places(after_lines: Integers, paragraphs: npt.NDArray[np.bool_], near: int) -> Integers:
    """Return one place of each `near` tokens: after the last paragraph that ends in them, or else the last line."""
    # Sorted by span of `near` tokens, then lines before paragraphs, then place: the last of each span is the one.
    span = after_lines // near
    order = np.lexsort((after_lines, paragraphs[after_lines - 1], span))
    chosen: Integers = after_lines[order][np.diff(span[order], append=-1) != 0]
    return chosen


def next_start(limit: int, choices: list[tuple[Integers, int]]) -> int:
    """Return the last place up to `limit`, of the first kind that has one near enough to it; else `limit`."""
    for places, near in choices:
        found = int(np.searchsorted(places, limit, side="right")) - 1
        if found >= 0 and limit - int(places[found]) < near:
            return int(places[found])
    return limit
