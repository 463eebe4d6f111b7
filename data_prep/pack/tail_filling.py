"""The tails of long documents fill rows up: they are cut once more, where a line ends, as far as that helps.

A heuristic of our own. Packing whole items leaves rows a little empty; a document that is longer than a row is cut
anyway, so the span of it that is left over, its tail, may as well be cut to the size of what is empty.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.arrays import Integers
from data_prep.select.long_documents import cut_tolerance

SHORTEST_SHARE = 32  # of a row: no cut leaves a shorter segment


class LengthBuckets:
    """Numbered items by length; bit L of `bits` tells whether there is an item of length L.

    One integer of Python's has a bit for every length up to a row's, so "the longest that fits" is a mask and a
    `bit_length`: some words of memory, whatever the number of items. A tree of lengths is slower for these few thousand
    lengths.
    """

    def __init__(self, lengths: Integers, capacity: int) -> None:
        self.items: list[list[int]] = [[] for _ in range(capacity + 1)]
        for item in range(len(lengths) - 1, -1, -1):  # backwards, for `take` takes the last: the first comes first
            self.items[int(lengths[item])].append(item)
        self.bits = sum(1 << length for length, items in enumerate(self.items) if items)

    def take(self, length: int) -> int:
        """Remove an item of this length, of which there is one, and return it."""
        item = self.items[length].pop()
        if not self.items[length]:
            self.bits ^= 1 << length
        return item

    def put(self, length: int, item: int) -> None:
        self.items[length].append(item)
        self.bits |= 1 << length

    def longest(self, room: int) -> int:
        """Return the greatest length up to `room`, or -1."""
        return (self.bits & ((2 << room) - 1)).bit_length() - 1


@dataclass(frozen=True, slots=True)
class Tail:
    """A span of a document that may be cut, best at one of `cut_points`, which count from the document's start."""

    document: int
    start: int
    tokens: int
    cut_points: Integers

    def cut(self, tokens: int, tolerance: int) -> tuple[Tail, Tail]:
        """Return its first `tokens`, or less than `tolerance` fewer that end at a cut point, and what follows them."""
        limit = self.start + tokens
        found = int(np.searchsorted(self.cut_points, limit, side="right")) - 1
        if found >= 0 and limit - self.cut_points[found] < min(tolerance, tokens):
            limit = int(self.cut_points[found])
        first = Tail(self.document, self.start, limit - self.start, self.cut_points)
        return first, Tail(self.document, limit, self.tokens - first.tokens, self.cut_points)


def fill_with_tails(
    tails: Sequence[Tail], rooms: Iterable[tuple[int, int]], new_row: int, row_tokens: int
) -> list[tuple[int, Tail]]:
    """Return the segments that tails become, with the row of each.

    `rooms` are rows and how many tokens are empty in each; they are filled in this order, then rows of their own from
    `new_row` up. A tail is cut only where none fits into what is empty, and then the longest.
    """
    tolerance, shortest = cut_tolerance(row_tokens), max(1, row_tokens // SHORTEST_SHARE)
    spans = list(tails)
    left = LengthBuckets(np.array([tail.tokens for tail in spans], dtype=np.int64), row_tokens)
    result: list[tuple[int, Tail]] = []
    new_rows = ((row, row_tokens) for row in itertools.count(new_row))
    for row, empty in itertools.chain(rooms, new_rows):
        room = empty
        while left.bits and room >= shortest:
            # The longest tail that fits is best fit. It is good enough if it leaves no more than the tolerance empty;
            # else the longest of all is cut, which keeps the short ones, that fit into many rooms, for later. Neither
            # side of a cut is much shorter than the shortest length, so no row gets a scrap of a few tokens.
            fitting, longest = left.longest(room), left.longest(row_tokens)
            is_cut = longest > room and longest >= 2 * shortest and fitting < room - tolerance
            if fitting < 0 and not is_cut:
                break
            span = spans[left.take(longest if is_cut else fitting)]
            if is_cut:
                span, other = span.cut(min(room, span.tokens - shortest), tolerance)
                left.put(other.tokens, len(spans))
                spans.append(other)
            result.append((row, span))
            room -= span.tokens
        if not left.bits:
            break
    return result
