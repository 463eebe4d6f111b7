"""Near duplicates: a small signature of each document, and the clusters of documents whose signatures agree.

Two documents are alike as far as they share shingles, stretches of SHINGLE_WORDS words (Broder 1997, "On the
resemblance and containment of documents"). A signature holds the smallest hash in each of BINS classes of shingles (one
permutation hashing: Li, Owen, Zhang 2012), empty classes filled from others (optimal densification: Shrivastava 2017),
and keeps one byte of each (b-bit minwise hashing: Li, König 2010). The share of equal bytes estimates the Jaccard
similarity of the two sets of shingles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from data_prep.packing import Integers, mix

SIGNATURE_VERSION = 1  # part of every slice's digest: raise it when a signature's bytes change

SHINGLE_WORDS = 5
BINS = 128
CHUNK_BYTES = 2**16  # hashed at once: the arrays of a chunk stay in the processor's cache
BATCH = 1024  # documents whose smallest hashes are held at once, 1 KiB each
PAIRS = 2**16  # compared at once
MISSED_AT_THRESHOLD = 0.05  # of the pairs exactly as similar as the threshold, how many may share no band

Hashes = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

EMPTY = np.uint64(2**64 - 1)
NO_WORDS = 0xFF  # every byte of the signature of a text without words, which is like no other
BASE = 0x9E3779B97F4A7C15
SEPARATOR, LETTER, IDEOGRAPH = range(3)


def signatures(texts: Sequence[str]) -> Bytes:
    """Return the signature of each text, [texts, BINS]: a function of its words, without case and punctuation."""
    return signatures_of_lowered([text.lower().encode("utf-8", "replace") for text in texts])


def signatures_of_lowered(texts: Sequence[bytes]) -> Bytes:
    """Return the signature of each text, given in lower case in UTF-8, [texts, BINS]."""
    batches = [densified(lowest_hashes(texts[first : first + BATCH])) for first in range(0, len(texts), BATCH)]
    return np.concatenate([np.empty((0, BINS), np.uint8), *batches])


def lowered(text: bytes) -> bytes:
    """Return a text in lower case; of what has no letters beyond ASCII, only the ASCII letters are looked at."""
    if not text.isascii():
        lead = np.frombuffer(text, dtype=np.uint8)
        signs = text.count(b"\xe2\x80")  # U+2000 to U+203F
        if np.count_nonzero(lead >= 0xC3) > signs:
            return text.decode().lower().encode()
    return text.lower()


def lowest_hashes(texts: Sequence[bytes]) -> Hashes:
    """Return, for each text and class of shingles, the smallest hash, or EMPTY."""
    lowest = np.full(len(texts) * BINS, EMPTY)
    for numbers, chunk in chunks(texts):
        shingles, owner = shingle_hashes(*word_hashes(chunk))
        np.minimum.at(lowest, numbers[owner] * BINS + (shingles >> np.uint64(57)).astype(np.int64), shingles)
    return lowest.reshape(-1, BINS)


def chunks(texts: Sequence[bytes]) -> Iterator[tuple[Integers, list[bytes]]]:
    """Yield pieces of texts, about CHUNK_BYTES together, with the numbers of their texts.

    A text is cut at multiples of CHUNK_BYTES, whatever its neighbours are; shingles over a cut are left out.
    """
    numbers: list[int] = []
    pieces: list[bytes] = []
    size = 0
    for number, text in enumerate(texts):
        for begin in range(0, len(text), CHUNK_BYTES):
            piece = text[begin : begin + CHUNK_BYTES]
            if size + len(piece) > CHUNK_BYTES and pieces:
                yield np.array(numbers, dtype=np.int64), pieces
                numbers, pieces, size = [], [], 0
            numbers.append(number)
            pieces.append(piece)
            size += len(piece)
    if pieces:
        yield np.array(numbers, dtype=np.int64), pieces


def word_hashes(texts: Sequence[bytes]) -> tuple[Hashes, Integers]:
    """Return the hash of each word and which text it is of. A word is a run of letters and digits, or one ideograph.

    The hash is a polynomial in the word's bytes, taken as a difference of running sums: no loop over words.
    """
    data = np.frombuffer(b" ".join([*texts, b""]), dtype=np.uint8)
    kind = kinds_of(data)
    in_word = kind != SEPARATOR
    begins_word = kind == IDEOGRAPH
    begins_word[0] |= in_word[0]
    begins_word[1:] |= in_word[1:] & ~in_word[:-1]
    begins = np.flatnonzero(begins_word)
    powers, inverses = power_tables(len(data))
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum((data * in_word) * powers, out=sums[1:])
    ends = np.append(begins, len(data))[1:]  # what separates the words adds nothing to the sums
    ends_of_texts = np.cumsum([len(text) + 1 for text in texts])
    owner = np.searchsorted(ends_of_texts, begins, side="right")
    return mix((sums[ends] - sums[begins]) * inverses[begins]), owner


def kinds_of(data: Bytes) -> Bytes:
    """Return what each byte of lower-case UTF-8 is; punctuation beyond ASCII separates words as ASCII's does."""
    kind = byte_kinds()[data]
    signs = np.flatnonzero(data == 0xC2)  # U+0080 to U+00BF
    kind[signs] = kind[signs + 1] = SEPARATOR
    signs = np.flatnonzero(data[:-2] == 0xE2)
    signs = signs[data[signs + 1] < 0xB0]  # U+2000 to U+2BFF
    kind[signs] = kind[signs + 1] = kind[signs + 2] = SEPARATOR
    return kind


@lru_cache(maxsize=1)
def byte_kinds() -> Bytes:
    kind = np.full(256, SEPARATOR, np.uint8)
    kind[np.frombuffer(b"0123456789abcdefghijklmnopqrstuvwxyz", np.uint8)] = LETTER
    kind[0x80:] = LETTER
    kind[0xE3:0xEE] = IDEOGRAPH  # the first byte of kana, hanzi and hangul, which stand without spaces
    return kind


def power_tables(length: int) -> tuple[Hashes, Hashes]:
    """Return the first powers of BASE and of its inverse modulo 2^64."""
    powers, inverses = all_powers(max(length, 2 * CHUNK_BYTES))
    return powers[:length], inverses[:length]


@lru_cache(maxsize=2)
def all_powers(length: int) -> tuple[Hashes, Hashes]:
    powers = np.full((2, length), 1, np.uint64)
    powers[0, 1:], powers[1, 1:] = BASE, pow(BASE, -1, 2**64)
    powers = np.cumprod(powers, axis=1, dtype=np.uint64)
    return powers[0], powers[1]


def shingle_hashes(words: Hashes, owner: Integers) -> tuple[Hashes, Integers]:
    """Return the hash of each shingle and which text it is of; a text shorter than a shingle has one of all its words.

    `owner` ascends.
    """
    count = len(words)
    total = words.copy()
    whole = np.zeros(count, np.bool_)
    whole[: max(count - SHINGLE_WORDS + 1, 0)] = True
    for step in range(1, min(SHINGLE_WORDS, count)):
        same = owner[step:] == owner[:-step]
        total[:-step] += words[step:] * same * np.uint64(pow(BASE, step, 2**64))
        whole[:-step] &= same
    whole |= np.diff(owner, prepend=-1) > 0  # the first shingle of every text, however short
    return mix(total[whole]), owner[whole]


def densified(lowest: Hashes) -> Bytes:
    """Return one byte of each smallest hash, those of empty classes taken from another class of the same text."""
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


def clusters(signature: Bytes, threshold: float) -> Integers:
    """Return for each document the first document of its cluster.

    Two documents are joined if they agree in one band of their signatures, and in as many bytes as `threshold` says;
    clusters are what is joined directly or through others. Takes a few hundred bytes for each document.
    """
    count = len(signature)
    rows = band_rows(threshold)
    comparable = np.flatnonzero((signature != NO_WORDS).any(axis=1))
    label = np.arange(count)
    for first in range(0, BINS - rows + 1, rows):
        left, right = candidates(signature, comparable, first, rows)
        fresh = label[left] != label[right]
        left, right = left[fresh], right[fresh]
        alike = agreement(signature, left, right) >= threshold
        label = joined(label, left[alike], right[alike])
    return label


def band_rows(threshold: float) -> int:
    """Return the longest band that finds pairs as similar as the threshold but for MISSED_AT_THRESHOLD."""
    for rows in range(BINS, 1, -1):
        if (1 - threshold**rows) ** (BINS // rows) <= MISSED_AT_THRESHOLD:
            return rows
    return 1


def candidates(signature: Bytes, comparable: Integers, first: int, rows: int) -> tuple[Integers, Integers]:
    """Return pairs that agree in a band: each document with the one before it and with the first of its group."""
    key = np.zeros(len(comparable), np.uint64)
    for column in range(first, first + rows):
        key = key * np.uint64(BASE) + signature[comparable, column]
    order = np.argsort(key, kind="stable")
    same = np.zeros(len(key), np.bool_)
    same[1:] = key[order][1:] == key[order][:-1]
    group = np.maximum.accumulate(np.where(same, 0, np.arange(len(key))))
    members = np.flatnonzero(same)
    left = np.concatenate([order[members - 1], order[group[members]]])
    return comparable[left], comparable[np.concatenate([order[members]] * 2)]


def agreement(signature: Bytes, left: Integers, right: Integers) -> npt.NDArray[np.float64]:
    """Return the share of equal bytes of each pair."""
    parts = [np.s_[begin : begin + PAIRS] for begin in range(0, len(left), PAIRS)]
    shares = [(signature[left[part]] == signature[right[part]]).mean(axis=1) for part in parts]
    return np.concatenate([np.empty(0), *shares])


def joined(label: Integers, left: Integers, right: Integers) -> Integers:
    """Return the labels when the clusters of each pair are one: the least number of the members, for all of them."""
    while (differ := label[left] != label[right]).any():
        left, right = left[differ], right[differ]
        low = np.minimum(label[left], label[right])
        np.minimum.at(label, np.concatenate([label[left], label[right]]), np.concatenate([low, low]))
        while (higher := label[label]).tobytes() != label.tobytes():
            label = higher
    return label
