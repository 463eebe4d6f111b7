"""From lengths of documents to rows: which stretch of which document stands where. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PACKING_VERSION = 2  # part of the configuration's digest: raise it when rows come out otherwise

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Rows of pieces: row r holds the pieces first[r] to first[r + 1].

    Piece i is tokens[i] of the document document[i], from start[i].
    """

    first: Integers
    document: Integers
    start: Integers
    tokens: Integers

    @property
    def rows(self) -> int:
        return len(self.first) - 1


def pack(
    method: str, lengths: Integers, row_tokens: int, seed: int, splits: Mapping[int, Integers] | None = None
) -> Packing:
    """Pack documents of these lengths into rows of `row_tokens`. No token is lost, none is used twice.

    `splits` says where the pieces of a document that is longer than a row begin, for best_fit.
    """
    if method == "concat":
        return concat(lengths, row_tokens)
    return best_fit(lengths, row_tokens, seed, splits or {})


def concat(lengths: Integers, row_tokens: int) -> Packing:
    """Let documents follow each other, cut where a row ends; only the last row can have padding."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    begins = ends - lengths
    cuts = np.union1d(begins[lengths > 0], np.arange(0, total, row_tokens, dtype=np.int64))
    document = np.searchsorted(ends, cuts, side="right")
    rows = -(-total // row_tokens)
    return Packing(
        first=np.searchsorted(cuts, np.arange(rows + 1, dtype=np.int64) * row_tokens),
        document=document,
        start=cuts - begins[document],
        tokens=np.diff(cuts, append=total),
    )


def best_fit(lengths: Integers, row_tokens: int, seed: int, splits: Mapping[int, Integers] | None = None) -> Packing:
    """Put each document, the longest first, into the fullest row that still has room; the rows' order is seeded.

    A document longer than a row is packed in pieces, as `splits` says or else in whole rows; no other is cut.
    """
    document, start, tokens = pieces_of(lengths, row_tokens, splits or {})
    by_length = np.argsort(-tokens, kind="stable")
    row = np.empty(len(tokens), dtype=np.int64)
    row[by_length] = best_fit_rows(tokens[by_length], row_tokens)
    rows = int(row.max(initial=-1)) + 1
    row = shuffled_ranks(rows, seed)[row]
    order = by_length[np.argsort(row[by_length], kind="stable")]
    return Packing(
        first=np.searchsorted(row[order], np.arange(rows + 1)),
        document=document[order],
        start=start[order],
        tokens=tokens[order],
    )


def pieces_of(
    lengths: Integers, row_tokens: int, splits: Mapping[int, Integers]
) -> tuple[Integers, Integers, Integers]:
    """Return document, start and length of every piece; documents without a token have none."""
    short = np.flatnonzero((lengths > 0) & (lengths <= row_tokens))
    document, start, tokens = [short], [np.zeros(len(short), dtype=np.int64)], [lengths[short]]
    for number in np.flatnonzero(lengths > row_tokens).tolist():
        length = int(lengths[number])
        starts = splits.get(number, np.arange(0, length, row_tokens, dtype=np.int64))
        document.append(np.full(len(starts), number, dtype=np.int64))
        start.append(starts)
        tokens.append(np.diff(starts, append=length))
    return np.concatenate(document), np.concatenate(start), np.concatenate(tokens)


def best_fit_rows(lengths: Integers, capacity: int) -> Integers:
    """Return the row of each item; lengths descend and none exceeds `capacity`.

    Rows wait in stacks by the room left in them; the bits of `open_rooms` tell which stacks are not empty, so the
    least sufficient room is found by bit arithmetic instead of a search.
    """
    stacks: list[list[int]] = [[] for _ in range(capacity + 1)]
    open_rooms = 0
    rows = 0
    result = np.empty(len(lengths), dtype=np.int64)
    for item, length in enumerate(lengths.tolist()):
        sufficient = open_rooms >> length
        if sufficient:
            room = length + (sufficient & -sufficient).bit_length() - 1
            row = stacks[room].pop()
            if not stacks[room]:
                open_rooms ^= 1 << room
        else:
            room, row = capacity, rows
            rows += 1
        left = room - length
        if left:
            stacks[left].append(row)
            open_rooms |= 1 << left
        result[item] = row
    return result


def shuffled_ranks(count: int, seed: int) -> Integers:
    """Return the new place of each of `count` rows.

    The order is that of splitmix64 (Steele, Lea, Flood 2014) of the seed and the row's number: unlike a library's
    shuffle it is the same in every version.
    """
    with np.errstate(over="ignore"):
        mixed = mix(np.arange(count, dtype=np.uint64) + mix(np.array([seed % 2**64], dtype=np.uint64)))
    ranks = np.empty(count, dtype=np.int64)
    ranks[np.argsort(mixed, kind="stable")] = np.arange(count)
    return ranks


def mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return splitmix64's output for each state."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
