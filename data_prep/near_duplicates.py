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

from data_prep.packing import mix
from data_prep.pouring import Integers

SIGNATURE_VERSION = 2  # part of every slice's digest: raise it when a signature's bytes change

SHINGLE_WORDS = 5
BINS = 128
CHUNK_BYTES = 2**18  # hashed at once: the arrays of a chunk stay in the processor's cache
BATCH = 1024  # documents whose smallest hashes are held at once, 1 KiB each
PAIRS = 2**16  # compared at once
MISSED_AT_THRESHOLD = 0.05  # of the pairs exactly as similar as the threshold, how many may share no band

Hashes = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

EMPTY = np.uint64(2**64 - 1)
NO_WORDS = 0xFF  # every byte of the signature of a text without words, which is like no other
BASE, FACTOR = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9  # odd, of stretches in a word, of words in a shingle
SEPARATOR = 0
WORD_BYTES = 8


def signatures(texts: Sequence[str]) -> Bytes:
    """Return the signature of each text, [texts, BINS]: a function of its words, without case and punctuation."""
    return signatures_of_bytes([text.encode("utf-8", "replace") for text in texts])


def signatures_of_bytes(texts: Sequence[bytes]) -> Bytes:
    """Return the signatures of texts in UTF-8."""
    batches = [densified(lowest_hashes(texts[first : first + BATCH])) for first in range(0, len(texts), BATCH)]
    return np.concatenate([np.empty((0, BINS), np.uint8), *batches])


def lowest_hashes(texts: Sequence[bytes]) -> Hashes:
    """Return, for each text and class of shingles, the smallest hash, or EMPTY."""
    lowest = np.full(len(texts) * BINS, EMPTY)
    for numbers, chunk in chunks(list(map(lowered, texts))):
        shingles, owner = shingle_hashes(*word_hashes(chunk))
        np.minimum.at(lowest, numbers[owner] * BINS + (shingles >> np.uint64(57)).astype(np.int64), shingles)
    return lowest.reshape(-1, BINS)


def lowered(text: bytes) -> bytes:
    """Return a text whose letters beyond ASCII are small; what ASCII's are does not matter, see `byte_table`."""
    if text.isascii():
        return text
    leads = np.count_nonzero(np.frombuffer(text, dtype=np.uint8) >= 0xC3)
    has_letters = leads > text.count(b"\xe2\x80")  # the signs U+2000 to U+203F
    return text.decode().lower().encode() if has_letters else text


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
    """Return the hash of each word, and how many words each text has.

    A word is a run of letters and digits, or one ideograph. Its hash is a polynomial in its stretches of WORD_BYTES
    bytes, read as numbers: most words have one.
    """
    data = np.frombuffer(b" ".join([b"", *texts, bytes(WORD_BYTES)]).translate(byte_table()), dtype=np.uint8)
    begins, ends = word_places(data)
    sizes = ends - begins
    stretches = np.ndarray(len(data) - WORD_BYTES + 1, np.dtype("<u8"), data, strides=(1,))
    words = stretches[begins] & first_bytes()[np.minimum(sizes, WORD_BYTES)]
    long = np.flatnonzero(sizes > WORD_BYTES)
    if len(long):
        more = (sizes[long] - 1) // WORD_BYTES
        first = np.cumsum(more) - more
        number = np.arange(int(more.sum())) - np.repeat(first, more) + 1
        at = WORD_BYTES * number
        rest = first_bytes()[np.minimum(np.repeat(sizes[long], more) - at, WORD_BYTES)]
        values = (stretches[np.repeat(begins[long], more) + at] & rest) * powers()[number]
        words[long] += np.add.reduceat(values, first)
    ends_of_texts = np.cumsum([len(text) + 1 for text in texts])
    return words, np.diff(np.searchsorted(begins, ends_of_texts, side="right"), prepend=0)


def word_places(data: Bytes) -> tuple[Integers, Integers]:
    """Return where words begin and end in text without punctuation in ASCII; the first and the last byte are of none.

    Punctuation beyond ASCII separates words as ASCII's does.
    """
    in_word = data != SEPARATOR
    if not data.max() < 0x80:
        for lead, limit, size in ((0xC2, 0xC0, 2), (0xE2, 0xB0, 3)):  # U+0080 to U+00BF, U+2000 to U+2BFF
            signs = np.flatnonzero(data[:-2] == lead)
            signs = signs[data[signs + 1] < limit]
            for place in range(size):
                in_word[signs + place] = False
        ideographs = np.flatnonzero(in_word & (data >= 0xE3) & (data < 0xEE))  # kana, hanzi, hangul: without spaces
        if len(ideographs):
            return between_ideographs(in_word, ideographs)
    changes = np.flatnonzero(in_word[1:] != in_word[:-1]) + 1
    return changes[0::2], changes[1::2]


def between_ideographs(in_word: npt.NDArray[np.bool_], ideographs: Integers) -> tuple[Integers, Integers]:
    """Return where words begin and end if each ideograph begins one."""
    begins = in_word.copy()
    begins[1:] &= ~in_word[:-1]
    begins[ideographs] = True
    ends = ~in_word | begins
    ends[1:] &= in_word[:-1]
    return np.flatnonzero(begins), np.flatnonzero(ends[1:]) + 1


@lru_cache(maxsize=1)
def byte_table() -> bytes:
    """Return what each byte is read as: ASCII letters as small ones, what separates words as SEPARATOR."""
    kept = [chr(b).isalnum() or b >= 0x80 for b in range(256)]
    return bytes((b | 0x20 if 65 <= b <= 90 else b) if kept[b] else SEPARATOR for b in range(256))


@lru_cache(maxsize=1)
def first_bytes() -> Hashes:
    """Return the masks of a number's first bytes, by how many."""
    return np.array([2 ** (8 * count) - 1 for count in range(WORD_BYTES + 1)], np.uint64)


@lru_cache(maxsize=1)
def powers() -> Hashes:
    """Return the powers of BASE modulo 2^64, as many as the longest word has stretches."""
    result = np.full(CHUNK_BYTES // WORD_BYTES + 2, BASE, np.uint64)
    result[0] = 1
    return np.cumprod(result, dtype=np.uint64)


def shingle_hashes(words: Hashes, counts: Integers) -> tuple[Hashes, Integers]:
    """Return the hash of each shingle and which text it is of; a text shorter than a shingle has one of all its words.

    `counts` says how many words each text has.
    """
    first = np.cumsum(counts) - counts
    factors = [np.uint64(pow(FACTOR, step, 2**64)) for step in range(SHINGLE_WORDS)]
    padded = np.concatenate([words, np.zeros(SHINGLE_WORDS, np.uint64)])
    total = sum((padded[step : len(words) + step] * factors[step] for step in range(1, SHINGLE_WORDS)), start=words)
    whole = np.ones(len(words), np.bool_)
    for step in range(1, SHINGLE_WORDS):
        whole[(first + counts - step)[counts >= step]] = False
    short = np.flatnonzero((counts > 0) & (counts < SHINGLE_WORDS))
    whole[first[short]] = True
    total[first[short]] = 0
    for step in range(SHINGLE_WORDS - 1):
        here = first[short[counts[short] > step]]
        total[here] += words[here + step] * factors[step]
    return mix(total[whole]), np.repeat(np.arange(len(counts)), counts)[whole]


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
