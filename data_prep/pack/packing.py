"""From lengths of documents to rows: which segment of which document is where. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_prep.arrays import Integers, mix
from data_prep.pack.tail_filling import LengthBuckets, Tail, fill_with_tails
from data_prep.select.long_documents import Split, cut_tolerance

PACKING_VERSION = 3  # part of the configuration's digest: raise it when the same documents give other rows

PAIR_TRIES = 200  # of lengths, for two items that end a row


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Rows of segments: row r holds the segments first[r] to first[r + 1].

    Segment i is tokens[i] of the document document[i], from start[i].
    """

    first: Integers
    document: Integers
    start: Integers
    tokens: Integers

    @property
    def rows(self) -> int:
        return len(self.first) - 1


def pack(
    method: str, lengths: Integers, row_tokens: int, seed: int, splits: Mapping[int, Split] | None = None
) -> Packing:
    """Pack documents of these lengths into rows of `row_tokens`. No token is lost, none is used twice.

    `splits` says where a document that is longer than a row is cut, for best_fit.
    """
    if method == "concat":
        return concat(lengths, row_tokens)
    return best_fit(lengths, row_tokens, seed, splits or {})


def concat(lengths: Integers, row_tokens: int) -> Packing:
    """Join documents end to end and cut where a row ends; only the last row can have padding."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    begins = ends - lengths
    # All documents make one stream of tokens. A segment begins where a document does and where a row does: the union of
    # both, sorted, are the segments, and a binary search tells the document of each.
    cuts = np.union1d(begins[lengths > 0], np.arange(0, total, row_tokens, dtype=np.int64))
    document = np.searchsorted(ends, cuts, side="right")
    rows = -(-total // row_tokens)
    return Packing(
        first=np.searchsorted(cuts, np.arange(rows + 1, dtype=np.int64) * row_tokens),
        document=document,
        start=cuts - begins[document],
        tokens=np.diff(cuts, append=total),
    )


def best_fit(lengths: Integers, row_tokens: int, seed: int, splits: Mapping[int, Split] | None = None) -> Packing:
    """Put documents together so that rows are full; the rows' order is seeded.

    A document longer than a row is packed in segments, as `splits` says or else in whole rows; no other is cut.
    """
    segments, cut_points = segments_of(lengths, row_tokens, splits or {})
    by_length = np.argsort(-segments[:, 2], kind="stable")
    row = np.empty(len(segments), dtype=np.int64)
    row[by_length] = best_fit_rows(segments[by_length, 2], row_tokens, seed)
    segments, row = with_tails_cut(segments, row, cut_points, row_tokens)
    # Taking tails out may leave a row empty: the rows that are left are numbered anew, then shuffled, since packing
    # makes those of long documents first and the model should not learn them first. In a row the longest comes first.
    row = np.unique(row, return_inverse=True)[1]
    rows = int(row.max(initial=-1)) + 1
    row = shuffled_ranks(rows, seed)[row]
    order = np.lexsort((-segments[:, 2], row))
    document, start, tokens = segments[order].T
    return Packing(
        first=np.searchsorted(row[order], np.arange(rows + 1)), document=document, start=start, tokens=tokens
    )


def segments_of(
    lengths: Integers, row_tokens: int, splits: Mapping[int, Split]
) -> tuple[Integers, dict[int, Integers]]:
    """Return document, start and tokens of every segment [segments, 3], and where some segments may be cut.

    Documents without a token have no segment.
    """
    short = np.flatnonzero((lengths > 0) & (lengths <= row_tokens))
    segments = [np.stack([short, np.zeros_like(short), lengths[short]], axis=1)]
    count, cut_points = len(short), {}
    for number in np.flatnonzero(lengths > row_tokens).tolist():
        length = int(lengths[number])
        split = splits.get(number)
        starts = np.arange(0, length, row_tokens, dtype=np.int64) if split is None else split.starts
        segments.append(np.stack([np.full_like(starts, number), starts, np.diff(starts, append=length)], axis=1))
        count += len(starts)
        if split is not None and split.places is not None:
            cut_points[count - 1] = split.places  # of the document's last segment
    return np.concatenate(segments), cut_points


def with_tails_cut(
    segments: Integers, row: Integers, cut_points: Mapping[int, Integers], row_tokens: int
) -> tuple[Integers, Integers]:
    """Return the segments and the row of each after rows were filled with the tails that may be cut.

    Tails are taken out of all rows that are not full, and fill first what is empty there.
    """
    room = row_tokens - np.bincount(row, weights=segments[:, 2]).astype(np.int64)
    removed = [number for number in cut_points if room[row[number]] > cut_tolerance(row_tokens)]
    columns = segments[removed].T.tolist()
    tails = [Tail(*values) for values in zip(*columns, (cut_points[number] for number in removed), strict=True)]
    # `add.at`, not `room[...] +=`: a row may lose two tails, and an indexed sum would count one of them
    np.add.at(room, row[removed], segments[removed, 2])
    # The fullest rows come first: what is empty there takes short spans, for which more tails can be used. A row that
    # lost all it had is not among them: rows of their own for tails are numbered after all these.
    rooms = [(number, int(room[number])) for number in np.argsort(room, kind="stable").tolist()]
    filled = fill_with_tails(tails, [one for one in rooms if one[1] < row_tokens], len(room), row_tokens)
    added = [(tail.document, tail.start, tail.tokens) for _, tail in filled]
    return (
        np.concatenate([np.delete(segments, removed, axis=0), np.array(added, dtype=np.int64).reshape(-1, 3)]),
        np.append(np.delete(row, removed), np.array([target for target, _ in filled], dtype=np.int64)),
    )


def best_fit_rows(lengths: Integers, capacity: int, seed: int) -> Integers:
    """Return the row of each item; no length exceeds `capacity`.

    Each row begins with the longest item left, continues with items in a seeded order, so that lengths stay mixed to
    the end, and ends with the one or two that fill it best (bin completion: Korf, "A New Algorithm for Optimal Bin
    Packing", 2002). Plain best fit leaves 1.5 % empty where five conversations of much the same length share a row,
    this 0.2 %. Nothing that is left fits into a finished row.
    """
    left = LengthBuckets(lengths, capacity)
    queue = iter(lengths[np.argsort(shuffled_ranks(len(lengths), seed))].tolist())
    result = np.empty(len(lengths), dtype=np.int64)
    row = 0
    # `bits` has a bit for each length that is left, and `fitting` for each of these that fits into the row's room: see
    # LengthBuckets. The queue holds lengths in the seeded order, not items, so a length that it names may be gone.
    while left.bits:
        longest = left.bits.bit_length() - 1
        result[left.take(longest)] = row
        room = capacity - longest
        while fitting := left.bits & ((2 << room) - 1):
            chosen, is_end = last_items(left, fitting, room)
            if not is_end:
                length = next((length for length in queue if left.items[length]), chosen[0])
                chosen = (length if length <= room else fitting.bit_length() - 1,)
            for length in chosen:
                result[left.take(length)] = row
            room -= sum(chosen)
        row += 1
    return result


def last_items(left: LengthBuckets, fitting: int, room: int) -> tuple[tuple[int, ...], bool]:
    """Return the one or two lengths that fill `room` best, and whether the row ends with them.

    Of two, those of much the same length are tried first: very long and very short ones are of more use later.
    """
    longest, shortest = fitting.bit_length() - 1, (fitting & -fitting).bit_length() - 1
    best: tuple[int, ...] = (longest,)
    half = -(-room // 2)
    # Of two lengths that fill the room, one has at least half of it: these are tried from the shortest up, each with
    # the longest that fits beside it, up to the length that leaves room for the shortest there is.
    longer = (fitting >> half << half) & ((2 << (room - min(shortest, room))) - 1)
    for _ in range(PAIR_TRIES):
        if sum(best) == room or not longer:
            break
        one = (longer & -longer).bit_length() - 1
        longer ^= 1 << one
        other = (fitting & ((2 << (room - one)) - 1)).bit_length() - 1
        if one + other > sum(best) and (other != one or len(left.items[one]) > 1):
            best = (one, other)
    return best, sum(best) == room or room - longest < shortest


def shuffled_ranks(count: int, seed: int) -> Integers:
    """Return the new number of each of `count` rows.

    The order is that of splitmix64 (Steele, Lea, Flood 2014) of the seed and the row's number: unlike a library's
    shuffle it is the same in every version.
    """
    mixed = mix(np.arange(count, dtype=np.uint64) + mix(np.array([seed % 2**64], dtype=np.uint64)))
    ranks = np.empty(count, dtype=np.int64)
    ranks[np.argsort(mixed, kind="stable")] = np.arange(count)
    return ranks
