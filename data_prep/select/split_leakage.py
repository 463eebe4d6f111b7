"""Leakage between splits: documents in two splits that are similar, or of which one contains the other.

Such documents are said to cross; `do_cross` decides it by their marks (see `document_marks`). Only the held-out
documents are indexed; the others are looked up, slice after slice. Most have no mark of a held-out document and are
done. The rest are compared only with documents that share a rare mark: of two documents that cross, any marks of the
one with fewer include a shared one if there are more of them than it may lack (prefix filtering: Bayardo, Ma, Srikant
2007). A held-out document that crosses with more than TEMPLATE others is a template rather than a document, and leaves
the index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from data_prep.arrays import Integers
from data_prep.clean.document_marks import (
    EXACT,
    Flags,
    Marked,
    batches,
    distinct,
    do_cross,
    in_common,
    joined,
    may_lack,
    places,
)
from data_prep.clean.near_duplicates import SHORT_WORDS
from data_prep.clean.shingles import SHINGLE_WORDS, Hashes
from data_prep.encode.encoded_slices import EncodedSlice

TEMPLATE = 20  # documents of other splits that a held-out document may be like, and more held-out documents
COMMON = 500  # a mark that more held-out documents have finds none of them
SHORT_HASHES = 2 * (SHORT_WORDS - SHINGLE_WORDS + 1)  # a short document has no more: its shingles, and marks of them
SLOTS = 16  # of the filter, for each mark
FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)  # odd, of its two hashes


class Postings:
    """Which held-out documents each mark is of: an inverted index in three arrays.

    The holders of `marks[i]` are holder[first[i]:first[i + 1]].
    """

    def __init__(self, marks: Hashes, owner: Integers) -> None:
        order = np.argsort(marks, kind="stable")
        self.holder = owner[order].astype(np.int32)
        self.marks, first = np.unique(marks[order], return_index=True)
        self.first = np.append(first, len(order))
        self.counts = np.diff(self.first)

    def frequency(self, marks: Hashes) -> Integers:
        """Return how many documents have each mark."""
        if not len(self.marks):
            return np.zeros(len(marks), np.int64)
        place = np.minimum(np.searchsorted(self.marks, marks), len(self.marks) - 1)
        return np.where(self.marks[place] == marks, self.counts[place], 0)

    def found(self, marks: Hashes, owner: Integers) -> Iterator[tuple[Integers, Integers]]:
        """Yield pairs of the documents `owner`, in their order, and those that have their marks.

        About MARKS pairs at a time, those of one document at once.
        """
        frequency = self.frequency(marks)
        known = frequency > 0
        marks, owner, frequency = marks[known], owner[known], frequency[known]
        first = self.first[np.searchsorted(self.marks, marks)]
        for begin, end in batches(frequency, owner):
            holder = self.holder[places(first[begin:end], frequency[begin:end])]
            yield np.repeat(owner[begin:end], frequency[begin:end]), holder.astype(np.int64)


class Index:
    """The held-out documents by their marks; by those that are `common` none is found."""

    def __init__(self, held: Marked, common: Hashes | None = None) -> None:
        self.held = held
        self.every = Postings(held.marks, held.owners())
        self.common = self.every.marks[self.every.counts > COMMON] if common is None else common
        frequency = self.frequency(held.marks)
        looked_for = held.rarest(frequency) & (frequency <= COMMON)
        self.rare = Postings(held.marks[looked_for], held.owners()[looked_for])
        self.bits = np.uint64(max(10, (SLOTS * len(self.every.marks)).bit_length()))
        self.slots = np.zeros(1 << int(self.bits), np.bool_)
        for factor in FACTORS:
            self.slots[self.places(self.every.marks, factor)] = True

    def frequency(self, marks: Hashes) -> Integers:
        """Return how many held-out documents have each mark, of common ones more than COMMON."""
        frequency = self.every.frequency(marks)
        if len(self.common):
            frequency[np.isin(marks, self.common)] = COMMON + 1
        return frequency

    def places(self, marks: Hashes, factor: np.uint64) -> Hashes:
        """Return the slot of each mark in the filter by one of its two hashes (multiplicative: Knuth, TAOCP 3, 6.4)."""
        place: Hashes = marks * factor >> (np.uint64(64) - self.bits)
        return place

    def known(self, marks: Hashes) -> Integers:
        """Return the places of the marks that are of a held-out document.

        They are looked up in a Bloom filter first, which most do not pass: a search among many takes a hundred times as
        long as a look at a bit.
        """
        at = np.flatnonzero(self.slots[self.places(marks, FACTORS[0])])
        at = at[self.slots[self.places(marks[at], FACTORS[1])]]
        return at[self.every.frequency(marks[at]) > 0]

    def pairs(self, others: Marked) -> Iterator[tuple[Integers, Integers]]:
        """Yield pairs of another document and a held-out one of another split that may cross, each once."""
        # The one with fewer marks is the one whose rare marks find the other. If that is the held-out document, its
        # rare marks are indexed and met by any mark of the other; if not, the other's rare marks are looked up among
        # all that are indexed. `both` is a pair as one number, so that a pair with several marks in common comes once.
        owner, counts = others.owners(), others.counts
        frequency = self.frequency(others.marks)
        known = np.bincount(owner[frequency > 0], minlength=len(counts))
        may_lie_here = known >= counts - may_lack(counts)  # in a held-out document with more marks
        sought = others.rarest(frequency) & may_lie_here[owner] & (frequency <= COMMON)
        for is_fewer, found in (
            (False, self.rare.found(others.marks, owner)),
            (True, self.every.found(others.marks[sought], owner[sought])),
        ):
            for other, held in found:
                chosen = (counts[other] < self.held.counts[held]) == is_fewer
                chosen &= others.split[other] != self.held.split[held]
                both = np.unique(other[chosen] * len(self.held.number) + held[chosen])
                yield both // len(self.held.number), both % len(self.held.number)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The lines of documents that are left out, and of one that each crosses with: templates, and the later of two."""

    templates: tuple[Integers, Integers]
    later: tuple[Integers, Integers]


def crossing(tables: Sequence[EncodedSlice], wanted: Flags, split: npt.NDArray[np.int8]) -> LeftOut:
    """Return the documents that are left out because they cross with others.

    Of two that cross the later is left out, unless the earlier is; a template always. `wanted` are the lines to look
    at, `split` counts SPLITS.
    """
    held = joined([marked(*part, split) for part in parts_of(tables, wanted & (split > 0))])
    finds = Finds(held)
    for table, chosen, before in parts_of(tables, wanted & (split != 1)):  # validation is in the index, all of it
        finds.look_up(marked(table, chosen, before, split, finds.index))
    return finds.resolved()


def short_ones_agree(tables: Sequence[EncodedSlice], left: Integers, right: Integers, threshold: float) -> Flags:
    """Return which pairs of lines are as similar as their signatures say.

    A signature says little of a short document. Where both are short all their shingles are compared; of others this
    says yes.
    """
    wanted = np.zeros(sum(len(table.part) for table in tables), np.bool_)
    wanted[left] = wanted[right] = True
    split = np.zeros(len(wanted), np.int8)
    parts = (
        marked(table, chosen & (np.diff(table.sketches.first) <= SHORT_HASHES), before, split)
        for table, chosen, before in parts_of(tables, wanted)
    )
    short = joined([bare(part.chosen(np.diff(part.first_shingle) > 0)) for part in parts])
    result = np.ones(len(left), np.bool_)
    pairs = np.flatnonzero(np.isin(left, short.number) & np.isin(right, short.number))
    places = [np.searchsorted(short.number, lines[pairs]) for lines in (left, right)]
    sizes = [np.diff(short.first_shingle)[place] for place in places]
    sets = [(short.shingles, short.first_shingle[place], size) for place, size in zip(places, sizes, strict=True)]
    common = in_common(sets[0], sets[1])
    result[pairs] = common >= threshold * (sizes[0] + sizes[1] - common) - EXACT
    return result


def bare(documents: Marked) -> Marked:
    """Return documents without their signatures."""
    return replace(documents, signature=documents.signature[:, :0])


def parts_of(tables: Sequence[EncodedSlice], wanted: Flags) -> Iterator[tuple[EncodedSlice, Flags, int]]:
    """Yield each slice, which documents in it are wanted, and how many documents stand before it."""
    before = 0
    for table in tables:
        yield table, wanted[before : before + len(table.part)], before
        before += len(table.part)


def marked(
    table: EncodedSlice, wanted: Flags, before: int, split: npt.NDArray[np.int8], index: Index | None = None
) -> Marked:
    """Return the wanted documents of a slice by their marks; of an index, those that may have a mark in it."""
    number = np.flatnonzero(wanted)
    hashes, counts = table.sketches.hashes(wanted)
    if index is not None:
        owner = np.repeat(np.arange(len(number)), counts)
        met = np.bincount(owner[index.known(hashes)], minlength=len(number)) > 0
        hashes, counts, number = hashes[met[owner]], counts[met], number[met]
    return distinct(hashes, counts, number + before, split[number + before], table.signature[number])


class Finds:
    """The held-out documents that are still in the index, and the pairs found: the places of both in the corpus."""

    def __init__(self, held: Marked) -> None:
        self.index = Index(held)
        self.degree = np.zeros(len(held.number), np.int64)  # of each in the index
        self.like = np.full(len(held.number), np.iinfo(np.int64).max)  # the first that it crosses with
        self.held: list[Integers] = []
        self.other: list[Integers] = []
        self.templates: list[Integers] = []
        self.of_templates: list[Integers] = []

    def look_up(self, others: Marked) -> None:
        """Find what crosses with these documents."""
        for other, held in self.index.pairs(others):
            alive = self.degree[held] <= TEMPLATE
            other, held = other[alive], held[alive]
            crosses = do_cross(others, other, self.index.held, held)
            other, held = others.number[other[crosses]], held[crosses]
            np.add.at(self.degree, held, 1)
            np.minimum.at(self.like, held, other)
            self.held.append(self.index.held.number[held])
            self.other.append(other)
        if np.count_nonzero(self.degree > TEMPLATE) * 16 > len(self.degree):
            documents = ~self.note_templates()
            self.index = Index(self.index.held.chosen(documents), self.index.common)
            self.degree, self.like = self.degree[documents], self.like[documents]

    def note_templates(self) -> Flags:
        """Record the templates, and return which documents in the index they are."""
        is_template: Flags = self.degree > TEMPLATE
        self.templates.append(self.index.held.number[is_template])
        self.of_templates.append(self.like[is_template])
        return is_template

    def resolved(self) -> LeftOut:
        """Return what is left out of all that was found."""
        # Greedy in the order of the corpus: a document that no kept one before it crosses with is kept, and drops what
        # follows and crosses with it. Each round does this for all documents whose fate no open pair can change.
        self.note_templates()
        templates = np.concatenate(self.templates)
        pairs = np.stack([np.concatenate([np.empty(0, np.int64), *found]) for found in (self.held, self.other)], axis=1)
        pairs = np.sort(pairs[~np.isin(pairs, templates).any(axis=1)])
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]  # so that who is noted below is the first
        drops, leaders = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while len(pairs):
            first, later = pairs.T
            kept = first[~np.isin(first, later)]
            goes = np.isin(first, kept)
            out, at = np.unique(later[goes], return_index=True)
            drops.append(out)
            leaders.append(first[goes][at])
            pairs = pairs[~np.isin(first, out) & ~np.isin(later, out)]
        later = np.concatenate(drops), np.concatenate(leaders)
        return LeftOut((templates, np.concatenate(self.of_templates)), later)
