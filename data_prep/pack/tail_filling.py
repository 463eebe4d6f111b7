"""The last pieces of long documents fill rows up: they are cut once more, where a line ends, as far as that helps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.arrays import Integers
from data_prep.select.long_documents import near_of

STUMP_SHARE = 32  # of a row: no cut leaves a shorter piece


class LengthBuckets:
    """Numbered items by length; the bits of `bits` tell which lengths there are."""

    def __init__(self, lengths: Integers, capacity: int) -> None:
        self.items: list[list[int]] = [[] for _ in range(capacity + 1)]
        for item in range(len(lengths) - 1, -1, -1):
            self.items[int(lengths[item])].append(item)
        self.bits = sum(1 << length for length, items in enumerate(self.items) if items)

    def take(self, length: int) -> int:
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
    """A stretch of a document that may be cut, best at one of `places`."""

    document: int
    start: int
    tokens: int
    places: Integers

    def cut(self, tokens: int, near: int) -> tuple[Tail, Tail]:
        """Return its first `tokens`, or as many less than `near` fewer as end at a place, and what follows them."""
        limit = self.start + tokens
        found = int(np.searchsorted(self.places, limit, side="right")) - 1
        if found >= 0 and limit - self.places[found] < min(near, tokens):
            limit = int(self.places[found])
        first = Tail(self.document, self.start, limit - self.start, self.places)
        return first, Tail(self.document, limit, self.tokens - first.tokens, self.places)


def pour(
    rests: Sequence[Tail], rooms: Iterable[tuple[int, int]], new_row: int, row_tokens: int
) -> list[tuple[int, Tail]]:
    """Return the stretches that `rests` become and the row of each.

    `rooms` are rows and how many tokens find room in each; they are filled in this order, then rows of their own from
    `new_row` on. A rest is cut only where none fits into what is empty, and then the longest.
    """
    near, stump = near_of(row_tokens), max(1, row_tokens // STUMP_SHARE)
    parts = list(rests)
    left = LengthBuckets(np.array([rest.tokens for rest in parts], dtype=np.int64), row_tokens)
    result: list[tuple[int, Tail]] = []
    new_rows = ((row, row_tokens) for row in itertools.count(new_row))
    for row, empty in itertools.chain(rooms, new_rows):
        room = empty
        while left.bits and room >= stump:
            fitting, longest = left.longest(room), left.longest(row_tokens)
            is_cut = longest > room and longest >= 2 * stump and fitting < room - near
            if fitting < 0 and not is_cut:
                break
            part = parts[left.take(longest if is_cut else fitting)]
            if is_cut:
                part, other = part.cut(min(room, part.tokens - stump), near)
                left.put(other.tokens, len(parts))
                parts.append(other)
            result.append((row, part))
            room -= part.tokens
        if not left.bits:
            break
    return result
