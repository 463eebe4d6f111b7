"""Near duplicates: a small signature of each document, and the documents with similar signatures.

Documents are similar as far as they share shingles (Broder 1997, "On the resemblance and containment of documents").
A signature holds the smallest hash in each of BINS classes of shingles (one permutation hashing: Li, Owen, Zhang 2012),
empty classes filled from others (optimal densification: Shrivastava 2017), and keeps one byte of each (b-bit minwise
hashing: Li, König 2010). The share of equal bytes estimates the Jaccard similarity of the two sets of shingles. A text
of fewer than MIN_WORDS words has none: its few shingles would say little, and its neighbours differ in what matters.

A sketch holds the marks of a document, and all shingles of a short one, by which `crossing` finds documents of
different splits that are similar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from data_prep.arrays import Integers, mix
from data_prep.clean.shingles import (
    BASE,
    SHINGLE_WORDS,
    WORD_BYTES,
    Bytes,
    Hashes,
    chunks,
    first_bytes,
    lowered,
    shingle_hashes,
    winnowed,
    word_hashes,
)

SIGNATURE_VERSION = 4  # part of every slice's digest: raise it when a signature's or a sketch's bytes change

MIN_WORDS = 20  # of a text that has a signature
MIN_SKETCHED_WORDS = 10  # of a text that has marks
SHORT_WORDS = 40  # up to which a text's sketch has all its shingles beside the marks
BINS = 128
MARK_BYTES = 5  # of a mark in a sketch: a million documents by a million share one by chance once in some hundred
BATCH = 1024  # documents whose smallest hashes are held at once, 1 KiB each
PAIRS = 2**16  # compared at once
MISSED_AT_THRESHOLD = 0.05  # of the pairs exactly as similar as the threshold, how many may share no band
ROUNDS = 20  # of comparing documents with their leaders

EMPTY = np.uint64(2**64 - 1)
NO_WORDS = 0xFF  # every byte of the signature of a text that has none, which is like no other


@dataclass(frozen=True, slots=True)
class Sketches:
    """The hashes of several documents, MARK_BYTES each; document i's are numbers first[i] to first[i + 1].

    Those that are odd are marks, the even ones are all the shingles of a short document.
    """

    data: Bytes
    first: Integers

    def __len__(self) -> int:
        return len(self.first) - 1

    def of(self, documents: Integers) -> Sketches:
        """Return the hashes of the documents of these numbers, in this order."""
        # A document's hashes lie one after the other. So the number of each is counted from 0 over all that are taken,
        # less how many were taken before this document, plus where its own begin.
        counts = np.diff(self.first)[documents]
        first = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        number = np.arange(first[-1]) + np.repeat(self.first[:-1][documents] - first[:-1], counts)
        return Sketches(self.data.reshape(-1, MARK_BYTES)[number].reshape(-1), first)

    def hashes(self, chosen: npt.NDArray[np.bool_]) -> tuple[Hashes, Integers]:
        """Return the hashes of the chosen documents and how many each has."""
        counts = np.diff(self.first)
        begin, end = MARK_BYTES * self.first[[0, -1]]
        padded = np.concatenate([self.data[begin:end], np.zeros(8, np.uint8)])
        every = np.ndarray(int(counts.sum()), np.dtype("<u8"), padded, strides=(MARK_BYTES,))
        return every[np.repeat(chosen, counts)] & np.uint64(2 ** (8 * MARK_BYTES) - 1), counts[chosen]


@dataclass(frozen=True, slots=True)
class Summaries:
    """What near duplicates are found by: signatures [documents, BINS], and the sketches."""

    signature: Bytes
    sketches: Sketches

    def of(self, documents: Integers) -> Summaries:
        """Return the summaries of the documents of these numbers, in this order."""
        if len(documents) == len(self.signature) and (np.diff(documents) == 1).all():
            return self  # all of them, as they are
        return Summaries(self.signature[documents], self.sketches.of(documents))


def summaries(texts: Sequence[bytes]) -> Summaries:
    """Return the signature and the sketch of each text in UTF-8, by its words without case and punctuation."""
    parts = [summaries_of_batch(texts[first : first + BATCH]) for first in range(0, max(1, len(texts)), BATCH)]
    return joined_summaries(parts)


def signatures(texts: Sequence[str]) -> Bytes:
    """Return the signature of each text, [texts, BINS]."""
    return summaries([text.encode("utf-8", "replace") for text in texts]).signature


def joined_summaries(parts: Sequence[Summaries]) -> Summaries:
    """Return the summaries of all parts, at least one, in their order."""
    counts = [np.diff(part.sketches.first) for part in parts]
    return Summaries(
        np.concatenate([part.signature for part in parts]),
        Sketches(
            np.concatenate([part.sketches.data for part in parts]),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts), dtype=np.int64)]),
        ),
    )


def summaries_of_batch(texts: Sequence[bytes]) -> Summaries:
    """Return the summaries of at most BATCH texts."""
    # The highest seven bits of a shingle's hash are its class, one of BINS = 2^7; the smallest hash of each class is
    # kept, for all texts at once. The lowest bit tells marks (1) from the shingles of short texts (0), see `Sketches`.
    lowest = np.full(len(texts) * BINS, EMPTY)
    sizes = np.zeros(len(texts), np.int64)  # in shingles
    hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for numbers, chunk in chunks(list(map(lowered, texts))):
        shingles, owner = shingle_hashes(*word_hashes(chunk))
        of = numbers[owner]
        np.minimum.at(lowest, of * BINS + (shingles >> np.uint64(57)).astype(np.int64), shingles)
        here = np.bincount(of, minlength=len(texts))
        sizes += here
        marks, owner = winnowed(shingles, of)
        hashes.append(marks | np.uint64(1))
        owners.append(owner)
        is_short = (here > 0) & (here <= SHORT_WORDS - SHINGLE_WORDS + 1)
        if is_short.any():
            hashes.append(shingles[is_short[of]] & ~np.uint64(1))
            owners.append(of[is_short[of]])
    signature = densified(lowest.reshape(-1, BINS))
    signature[sizes <= MIN_WORDS - SHINGLE_WORDS] = NO_WORDS
    return Summaries(signature, sketches_of(np.concatenate(hashes), np.concatenate(owners), sizes))


def sketches_of(hashes: Hashes, owner: Integers, sizes: Integers) -> Sketches:
    """Return the sketches of texts with `sizes` shingles, from hashes in any order."""
    order = np.argsort(owner, kind="stable")
    order = order[sizes[owner[order]] > MIN_SKETCHED_WORDS - SHINGLE_WORDS]
    counts = np.bincount(owner[order], minlength=len(sizes))
    data = hashes[order].astype("<u8").view(np.uint8).reshape(-1, 8)[:, :MARK_BYTES]
    return Sketches(data.ravel(), np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]))


def densified(lowest: Hashes) -> Bytes:
    """Return one byte of each smallest hash, those of empty classes taken from another class of the same text."""
    # Each class has its own random order in which the others are looked into, the same in all texts: so two texts with
    # the same shingles fill it alike, and with less variance than from its neighbour (Shrivastava 2017).
    empty = lowest == EMPTY
    own = lowest.astype(np.uint8)  # the low bits: the high ones tell the class, and are small
    result = own.copy()
    row, column = np.nonzero(empty & ~empty.all(axis=1, keepdims=True))
    for order in probes():
        if not len(row):
            break
        other = order[column]
        found = ~empty[row, other]
        result[row[found], column[found]] = own[row[found], other[found]]
        row, column = row[~found], column[~found]
    return result


@lru_cache(maxsize=1)
def probes() -> Integers:
    """Return for each attempt and class the class to look into: [attempts, BINS], a permutation in each column."""
    keys = mix(np.arange(BINS * BINS, dtype=np.uint64)).reshape(BINS, BINS)
    return np.argsort(keys, axis=0, kind="stable")


def clusters(signature: Bytes, threshold: float, chosen: Integers | None = None) -> Integers:
    """Return for each document the first one that it is similar to, its leader, or itself; a leader's is itself.

    Two documents are similar if the share of equal bytes in their signatures is at least `threshold`. Documents that
    agree in a band of their signatures are compared, and similar ones are grouped, directly or through others; those
    not similar to the first of their group are grouped again among themselves, up to ROUNDS times. `chosen` are the
    documents to look at, in their order; the others stay alone.
    """
    label = np.arange(len(signature))
    left = np.arange(len(signature)) if chosen is None else chosen
    left = left[is_signed(signature)[left]]
    for _ in range(ROUNDS):
        left = put_together(signature, left, threshold, label)
        if not len(left):
            break
    return label


def is_signed(signature: Bytes) -> npt.NDArray[np.bool_]:
    """Return which documents have a signature."""
    parts = [signature[begin : begin + PAIRS] for begin in range(0, len(signature), PAIRS)]
    return np.concatenate([np.empty(0, np.bool_), *((part != NO_WORDS).any(axis=1) for part in parts)])


def put_together(signature: Bytes, chosen: Integers, threshold: float, label: Integers) -> Integers:
    """Set `label` of each of the chosen to the first of its group; return those that are not similar to it."""
    # Locality-sensitive hashing by bands (Indyk, Motwani 1998; for minhash: Leskovec, Rajaraman, Ullman, "Mining of
    # Massive Datasets", 3.4): what agrees in all bytes of one band is a candidate. Then union-find: `place` is the
    # first of what each document was put together with so far.
    rows = band_rows(threshold)
    place = np.arange(len(chosen))
    for first in range(0, BINS - rows + 1, rows):
        left, right = candidates(signature, chosen, first, rows)
        fresh = place[left] != place[right]
        left, right = left[fresh], right[fresh]
        alike = agreement(signature, chosen[left], chosen[right]) >= threshold
        place = joined(place, left[alike], right[alike])
    follows = np.flatnonzero(place != np.arange(len(chosen)))
    alike = agreement(signature, chosen[follows], chosen[place[follows]]) >= threshold
    label[chosen[follows[alike]]] = chosen[place[follows[alike]]]
    return chosen[follows[~alike]]


def band_rows(threshold: float) -> int:
    """Return the longest band that misses at most MISSED_AT_THRESHOLD of the pairs as similar as the threshold."""
    for rows in range(BINS, 1, -1):
        if (1 - threshold**rows) ** (BINS // rows) <= MISSED_AT_THRESHOLD:
            return rows
    return 1


def candidates(signature: Bytes, chosen: Integers, first: int, rows: int) -> tuple[Integers, Integers]:
    """Return pairs of places in `chosen` that agree in a band: each with the one before it and the first of its group.

    Some may differ in the band all the same: low bits of its hash are lost.
    """
    key = np.empty(len(chosen), np.uint64)
    for begin in range(0, len(chosen), PAIRS):
        key[begin : begin + PAIRS] = band_hashes(signature, chosen[begin : begin + PAIRS], first, rows)
    # Equal keys are neighbours once sorted. Each member is paired with its neighbour and with the first of its group,
    # not with all: pairs grow with the documents, not with their squares, and union-find needs no more.
    place = sort_with_places(key)
    members = np.flatnonzero(key[1:] == key[:-1]) + 1
    begins = np.ones(len(members), np.bool_)  # of a group's second member, whose neighbour is the first
    begins[1:] = members[1:] != members[:-1] + 1
    group = np.maximum.accumulate(np.where(begins, members - 1, 0))
    return np.concatenate([place[members - 1], place[group]]), np.concatenate([place[members]] * 2)


def sort_with_places(hashes: Hashes) -> Integers:
    """Sort hashes in place, less their low bits, and return where each stood; of equal ones the first stays first.

    A hash and its place are sorted as one number: several times faster than an order of the hashes, and half the
    memory. The bits that the place takes are lost, so that different hashes may become equal.
    """
    bits = np.uint64(max(1, len(hashes) - 1).bit_length())
    for begin in range(0, len(hashes), PAIRS):
        part = hashes[begin : begin + PAIRS]
        part[:] = part >> bits << bits | np.arange(begin, begin + len(part), dtype=np.uint64)
    hashes.sort()
    places = (hashes & np.uint64(2 ** int(bits) - 1)).astype(np.int64)
    hashes >>= bits
    return places


def band_hashes(signature: Bytes, chosen: Integers, first: int, rows: int) -> Hashes:
    """Return the hash of a band of the chosen documents' signatures, whose bytes are read as numbers, eight at once."""
    key = np.zeros(len(chosen), np.uint64)
    for begin in range(first, first + rows, WORD_BYTES):
        at = min(begin, BINS - WORD_BYTES)
        words = np.ndarray(len(signature), np.dtype("<u8"), signature, at, (BINS,))[chosen]
        wanted = first_bytes()[min(WORD_BYTES, first + rows - begin)]
        key = key * np.uint64(BASE) + (words >> np.uint64(8 * (begin - at)) & wanted)
    return mix(key)


def agreement(
    signature: Bytes, left: Integers, right: Integers, others: Bytes | None = None
) -> npt.NDArray[np.float64]:
    """Return the share of equal bytes of each pair, whose right ones may be in another array."""
    others = signature if others is None else others
    parts = [np.s_[begin : begin + PAIRS] for begin in range(0, len(left), PAIRS)]
    shares = [(signature[left[part]] == others[right[part]]).mean(axis=1) for part in parts]
    return np.concatenate([np.empty(0), *shares])


def joined(label: Integers, left: Integers, right: Integers) -> Integers:
    """Return the labels when the clusters of each pair are one: the least number of the members, for all of them."""
    # Union-find on whole arrays: every label takes the least of its neighbours', then paths are halved until no label
    # points to one that points elsewhere. A few rounds, however many pairs.
    while (differ := label[left] != label[right]).any():
        left, right = left[differ], right[differ]
        low = np.minimum(label[left], label[right])
        np.minimum.at(label, np.concatenate([label[left], label[right]]), np.concatenate([low, low]))
        while (higher := label[label]).tobytes() != label.tobytes():
            label = higher
    return label
