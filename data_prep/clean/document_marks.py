"""Documents by their marks, and whether two of them cross.

Two documents cross if their shingles have a Jaccard similarity of JACCARD or more, or if at least CONTAINMENT of those
of the one with fewer are in the other. For two short ones this follows from all their shingles, for others from their
marks, as well as a sample can show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.arrays import Integers
from data_prep.clean.near_duplicates import MARK_BYTES, agreement, is_signed
from data_prep.clean.shingles import Bytes, Hashes

JACCARD, CONTAINMENT = 0.7, 0.9
EXACT = 1e-9  # what a product of fractions may lack
DEVIATION = 0.12  # of a similarity by signature from the true one: three times its standard deviation
RATIO = 1.2  # of sizes, from that of marks, at most
MARKS = 2**21  # looked at together
PAIR_BITS = np.uint64(8 * MARK_BYTES)

Flags = npt.NDArray[np.bool_]


def needed(fewer: Integers, more: Integers) -> npt.NDArray[np.float64]:
    """Return how many common shingles make two documents with `fewer` and `more` shingles cross."""
    count: npt.NDArray[np.float64] = np.minimum(CONTAINMENT * fewer, JACCARD / (1 + JACCARD) * (fewer + more))
    return count


def enough(fewer: Integers, more: Integers) -> npt.NDArray[np.float64]:
    """Return how many common marks make two documents with `fewer` and `more` marks cross.

    Marks are a sample of the shingles, and the fewer there are the less certain: the allowance was measured on planted
    pairs, so that fewer than one in a hundred of those exactly at the bounds is missed.
    """
    return needed(fewer, more) - 0.45 * np.sqrt(fewer) - 0.07 * fewer


def may_lack(counts: Integers) -> Integers:
    """Return how many of its marks a document may lack in one with as many or more that it crosses with."""
    least = np.minimum(enough(counts, counts), needed(counts, counts) - np.sqrt(counts))  # a short one may lack more
    return counts - np.maximum(1, np.ceil(least)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Marked:
    """Documents by their marks, each mark once: document d's are marks[first[d]:first[d + 1]].

    All shingles of a short one are likewise in `shingles`, of a long one none. `number` is the document's place in the
    corpus, `split` its split.
    """

    marks: Hashes
    first: Integers
    shingles: Hashes
    first_shingle: Integers
    number: Integers
    split: npt.NDArray[np.int8]
    signature: Bytes

    @property
    def counts(self) -> Integers:
        """How many marks each document has."""
        return np.diff(self.first)

    def owners(self) -> Integers:
        """Return which document each mark is of."""
        return np.repeat(np.arange(len(self.number), dtype=np.int64), self.counts)

    def chosen(self, documents: Flags) -> Marked:
        """Return the documents that are flagged."""
        of_marks, of_shingles = np.diff(self.first), np.diff(self.first_shingle)
        return Marked(
            self.marks[np.repeat(documents, of_marks)],
            starts(of_marks[documents]),
            self.shingles[np.repeat(documents, of_shingles)],
            starts(of_shingles[documents]),
            self.number[documents],
            self.split[documents],
            self.signature[documents],
        )

    def rarest(self, frequency: Integers) -> Flags:
        """Return which marks are looked for: the rarest, more than the document may lack, if it has fewer marks."""
        # Prefix filtering (Bayardo, Ma, Srikant 2007): a document that may lack n of its marks in the other has one of
        # any n + 1 in common with it. The n + 1 rarest find the fewest others. `rank` counts from 0 in each document.
        counts, owner = self.counts, self.owners()
        order = np.lexsort((frequency, owner))
        rank = np.arange(len(order)) - np.repeat(self.first[:-1], counts)
        result = np.zeros(len(order), np.bool_)
        result[order] = rank <= may_lack(counts)[owner]
        return result


def starts(counts: Integers) -> Integers:
    """Return where runs of these lengths begin if they follow each other, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def distinct(
    hashes: Hashes, counts: Integers, number: Integers, split: npt.NDArray[np.int8], signature: Bytes
) -> Marked:
    """Return documents by their marks and shingles, each of a document once."""
    # Sorted by document and hash, equal hashes are neighbours and the first of each is kept; the lowest bit of a hash
    # tells marks from shingles.
    owner = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    order = np.lexsort((hashes, owner))
    hashes = hashes[order]
    fresh = np.ones(len(hashes), np.bool_)
    fresh[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
    is_mark = hashes & np.uint64(1) == 1
    marks, shingles = fresh & is_mark, fresh & ~is_mark
    return Marked(
        hashes[marks],
        starts(np.bincount(owner[marks], minlength=len(counts))),
        hashes[shingles],
        starts(np.bincount(owner[shingles], minlength=len(counts))),
        number,
        split,
        signature,
    )


def joined(parts: Sequence[Marked]) -> Marked:
    """Return the documents of all parts."""
    return Marked(
        np.concatenate([part.marks for part in parts]),
        starts(np.concatenate([np.diff(part.first) for part in parts])),
        np.concatenate([part.shingles for part in parts]),
        starts(np.concatenate([np.diff(part.first_shingle) for part in parts])),
        np.concatenate([part.number for part in parts]),
        np.concatenate([part.split for part in parts]),
        np.concatenate([part.signature for part in parts]),
    )


def places(first: Integers, counts: Integers) -> Integers:
    """Return the numbers first[i] to first[i] + counts[i], for one i after the other."""
    return np.arange(int(counts.sum())) + np.repeat(first - np.cumsum(counts) + counts, counts)


def batches(sizes: Integers, owner: Integers) -> Iterator[tuple[int, int]]:
    """Yield begins and ends of about MARKS together by `sizes`, never between two of the same owner."""
    if len(sizes):
        cuts = np.searchsorted(np.cumsum(sizes), np.arange(0, int(sizes.sum()), MARKS))
        cuts = np.unique(np.searchsorted(owner, owner[cuts])).tolist()
        yield from zip(cuts, [*cuts[1:], len(sizes)], strict=True)


def do_cross(one: Marked, left: Integers, other: Marked, right: Integers) -> Flags:
    """Return which pairs of a document `left` of one and a document `right` of the other cross.

    Two short ones are compared by all their shingles, others by their marks, if their signatures do not say no: that
    costs a tenth, and many marks may be in common by chance where many documents share a template.
    """
    result = np.zeros(len(left), np.bool_)
    maybe = np.flatnonzero(may_cross(one, left, other, right))
    result[maybe] = marks_cross(one, left[maybe], other, right[maybe])
    return result


def may_cross(one: Marked, left: Integers, other: Marked, right: Integers) -> Flags:
    """Return which pairs may cross for all that the signatures and the numbers of marks say."""
    # Of two sets with sizes of the ratio r, containment c of the smaller one means a Jaccard similarity of
    # c / (1 - c + r). What the signature says must reach that or JACCARD, less what chance takes from a signature.
    counts = one.counts[left], other.counts[right]
    ratio = np.maximum(*counts) / np.maximum(1, np.minimum(*counts))
    least = np.minimum(JACCARD, CONTAINMENT / (1 - CONTAINMENT + RATIO * ratio)) - DEVIATION
    signed = is_signed(one.signature)[left] & is_signed(other.signature)[right]
    result = ~signed
    pairs = np.flatnonzero(signed)
    result[pairs] = agreement(one.signature, left[pairs], right[pairs], other.signature) >= least[pairs]
    return result


def marks_cross(one: Marked, left: Integers, other: Marked, right: Integers) -> Flags:
    """Return which pairs cross by their marks, or by their shingles if both are short."""
    counts = one.counts[left], other.counts[right]
    common = in_common((one.marks, one.first[left], counts[0]), (other.marks, other.first[right], counts[1]))
    result = common >= np.maximum(1, enough(np.minimum(*counts), np.maximum(*counts)))
    sizes = np.diff(one.first_shingle)[left], np.diff(other.first_shingle)[right]
    short = np.flatnonzero(np.minimum(*sizes) > 0)
    sizes = sizes[0][short], sizes[1][short]
    first = one.first_shingle[left[short]], other.first_shingle[right[short]]
    common = in_common((one.shingles, first[0], sizes[0]), (other.shingles, first[1], sizes[1]))
    result[short] = common >= needed(np.minimum(*sizes), np.maximum(*sizes)) - EXACT
    return result


def in_common(left: tuple[Hashes, Integers, Integers], right: tuple[Hashes, Integers, Integers]) -> Integers:
    """Return how many hashes two sets have in common, pair by pair; a side is all hashes, and where its sets lie."""
    # Both sides of many pairs are sorted together as one number, the pair above the hash: a hash that both sets of a
    # pair have then occurs twice in a row, since each set has it once.
    result = np.zeros(len(left[1]), np.int64)
    for begin, end in batches(left[2] + right[2], np.arange(len(result))):
        keys = []
        for hashes, first, counts in (left, right):
            pair = np.repeat(np.arange(end - begin, dtype=np.uint64), counts[begin:end])
            keys.append(pair << PAIR_BITS | hashes[places(first[begin:end], counts[begin:end])])
        key = np.sort(np.concatenate(keys))
        twice = (key[1:][key[1:] == key[:-1]] >> PAIR_BITS).astype(np.int64)
        result[begin:end] = np.bincount(twice, minlength=end - begin)
    return result
