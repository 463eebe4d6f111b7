"""Shingles: the hash of every run of SHINGLE_WORDS words of a text, and marks that are chosen among them.

A word is a run of letters and digits, without case and punctuation; in scripts that put no spaces between words, one
character. Marks are chosen by winnowing (Schleimer, Wilkerson, Aiken 2003): of every WINDOW shingles in a row the one
with the smallest hash. So two texts with a run of WINDOW shingles in common, SHINGLE_WORDS + WINDOW - 1 words, have a
mark in common, wherever the run is, and one in three shingles is kept as a mark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from data_prep.arrays import Integers, mix

SHINGLE_WORDS = 5
WINDOW = 5
CHUNK_BYTES = 2**18  # hashed at once: the arrays of a chunk stay in the processor's cache

Hashes = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

BASE, FACTOR = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9  # odd, of the numbers in a word, of the words in a shingle
SEPARATOR = 0
WORD_BYTES = 8
JOINERS = (0x8C, 0x8D)  # the last bytes of U+200C and U+200D, which stand inside words of Indic scripts and Persian


def lowered(text: bytes) -> bytes:
    """Return a text with its letters beyond ASCII in lower case; case in ASCII does not matter, see `byte_table`."""
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

    A word is a run of letters and digits, or one ideograph. Its hash is a polynomial in the numbers that its
    bytes are, WORD_BYTES to a number: most words have one.
    """
    # A view with strides of one byte has the number that begins at every byte, so that all first numbers are one
    # gather; a mask takes the bytes behind a short word away. The few long words add their other numbers: `number`
    # counts these from 1 in each word, and `reduceat` sums them by word.
    data = np.frombuffer(b" ".join([b"", *texts, bytes(WORD_BYTES)]).translate(byte_table()), dtype=np.uint8)
    begins, ends = word_places(data)
    sizes = ends - begins
    numbers = np.ndarray(len(data) - WORD_BYTES + 1, np.dtype("<u8"), data, strides=(1,))
    words = numbers[begins] & first_bytes()[np.minimum(sizes, WORD_BYTES)]
    long = np.flatnonzero(sizes > WORD_BYTES)
    if len(long):
        more = (sizes[long] - 1) // WORD_BYTES
        first = np.cumsum(more) - more
        number = np.arange(int(more.sum())) - np.repeat(first, more) + 1
        at = WORD_BYTES * number
        rest = first_bytes()[np.minimum(np.repeat(sizes[long], more) - at, WORD_BYTES)]
        values = (numbers[np.repeat(begins[long], more) + at] & rest) * powers()[number]
        words[long] += np.add.reduceat(values, first)
    ends_of_texts = np.cumsum([len(text) + 1 for text in texts])
    return words, np.diff(np.searchsorted(begins, ends_of_texts, side="right"), prepend=0)


def word_places(data: Bytes) -> tuple[Integers, Integers]:
    """Return where words begin and end in text without punctuation in ASCII; its first byte and last three are of none.

    Punctuation beyond ASCII separates words as ASCII's does, and so does Tibetan's tsheg.
    """
    in_word = data != SEPARATOR
    if not data.max() < 0x80:
        for signs, size in signs_of(data):
            for place in range(size):
                in_word[signs + place] = False
        unspaced = unspaced_characters(data, in_word)
        if len(unspaced):
            return between_characters(in_word, unspaced)
    changes = np.flatnonzero(in_word[1:] != in_word[:-1]) + 1
    return changes[0::2], changes[1::2]


def signs_of(data: Bytes) -> Iterator[tuple[Integers, int]]:
    """Yield where the signs beyond ASCII that are in no word begin, and of how many bytes they are.

    They are U+0080 to U+00BF, U+2000 to U+2BFF but for the joiners, Tibetan's U+0F0B to U+0F14, CJK's U+3000 to U+303F
    but for three that are letters, and the full-width forms of ASCII's.
    """
    lead = np.flatnonzero(data >= 0xC2)
    first, second, third = data[lead], data[lead + 1], data[lead + 2]
    yield lead[(first == 0xC2) & (second < 0xC0)], 2
    joins = (second == 0x80) & np.isin(third, JOINERS)
    signs = (first == 0xE2) & (second < 0xB0) & ~joins
    signs |= (first == 0xE0) & (second == 0xBC) & (third >= 0x8B) & (third <= 0x94)
    signs |= (first == 0xE3) & (second == 0x80) & ((third < 0x85) | (third > 0x87))
    ascii_form = (first == 0xEF) & ((second == 0xBC) | ((second == 0xBD) & (third < 0xA6)))
    signs |= ascii_form & ~np.isin(second.astype(np.uint16) << 8 | third, full_width_letters())
    yield lead[signs], 3


@lru_cache(maxsize=1)
def full_width_letters() -> npt.NDArray[np.uint16]:
    """Return the last two bytes of the full-width digits and letters, U+FF10 to U+FF5A."""
    letters = [chr(code).encode() for code in range(0xFF10, 0xFF5B) if chr(code).isalnum()]
    return np.array([letter[1] << 8 | letter[2] for letter in letters], np.uint16)


def unspaced_characters(data: Bytes, in_word: npt.NDArray[np.bool_]) -> Integers:
    """Return where characters of scripts begin that are written without spaces: each is a word.

    Three bytes long: Thai and Lao U+0E00 to U+0EFF, Myanmar U+1000 to U+109F, Khmer U+1780 to U+17FF, and kana, hanzi
    and hangul. The marks of Indic scripts are of their words, as letters are.
    """
    found = np.flatnonzero(in_word & (data >= 0xE0) & (data < 0xEE))
    lead, second = data[found], data[found + 1]
    chosen = lead >= 0xE3
    chosen |= (lead == 0xE0) & (second >= 0xB8) & (second < 0xBC)
    chosen |= (lead == 0xE1) & ((second < 0x82) | ((second == 0x82) & (data[found + 2] < 0xA0)))
    chosen |= (lead == 0xE1) & (second >= 0x9E) & (second < 0xA0)
    return found[chosen]


def between_characters(in_word: npt.NDArray[np.bool_], unspaced: Integers) -> tuple[Integers, Integers]:
    """Return where words begin and end if each of the characters, of three bytes, is one."""
    # As flags, so that a run of letters and a character beside it meet without a separator: a word begins where a run
    # begins, at each such character, and behind it if letters follow; it ends where a run ends or another word begins.
    begins = in_word.copy()
    begins[1:] &= ~in_word[:-1]
    begins[unspaced] = True
    after = unspaced + 3
    begins[after] = in_word[after]
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
    """Return the powers of BASE modulo 2^64, as many as the longest word has numbers."""
    result = np.full(CHUNK_BYTES // WORD_BYTES + 2, BASE, np.uint64)
    result[0] = 1
    return np.cumprod(result, dtype=np.uint64)


def shingle_hashes(words: Hashes, counts: Integers) -> tuple[Hashes, Integers]:
    """Return the hash of each shingle and which text it is of; a text shorter than a shingle has none.

    `counts` says how many words each text has.
    """
    # A shingle's hash is a polynomial in its words' hashes (Karp, Rabin 1987), taken for all places of all texts at
    # once: the words, shifted by each step. The last places of a text would reach into the next one and are left out.
    ends = np.cumsum(counts)
    factors = [np.uint64(pow(FACTOR, step, 2**64)) for step in range(SHINGLE_WORDS)]
    padded = np.concatenate([words, np.zeros(SHINGLE_WORDS, np.uint64)])
    total = sum((padded[step : len(words) + step] * factors[step] for step in range(1, SHINGLE_WORDS)), start=words)
    whole = np.ones(len(words), np.bool_)
    for step in range(1, SHINGLE_WORDS):
        whole[(ends - step)[counts >= step]] = False
    return mix(total[whole]), np.repeat(np.arange(len(counts)), counts)[whole]


def winnowed(shingles: Hashes, owner: Integers) -> tuple[Hashes, Integers]:
    """Return the smallest of every WINDOW shingles of a text in a row, each place once, and which text it is of."""
    count = len(shingles) - WINDOW + 1
    if count < 1:
        return shingles[:0], owner[:0]
    # The smallest of five in a row, by doubling: of two, of four, and the fifth. A mark that stays the smallest while
    # the window moves on is taken once. Windows that begin in one text and end in the next are left out.
    pairs = np.minimum(shingles[:-1], shingles[1:])
    fours = np.minimum(pairs[:-2], pairs[2:])
    low = np.minimum(fours[:count], shingles[WINDOW - 1 :])
    fresh = np.ones(count, np.bool_)
    np.not_equal(low[1:], low[:-1], out=fresh[1:])
    fresh[np.flatnonzero(owner[1:count] != owner[: count - 1]) + 1] = True  # where a text begins
    at = np.flatnonzero(fresh)
    of = owner[at]
    inside = of == owner[at + WINDOW - 1]
    return low[at[inside]], of[inside]
