"""Which texts cleaning would not change, found from the bytes of many at once, so that only the others are cleaned.

The answer errs on one side: a text that may change can turn out to be clean, but one that may not change is clean by
every rule of `cleaning`. So a new rule there must be reflected here; a property test compares the two.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.config import CleaningConfig
from data_prep.read.record_blocks import Texts

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]

TAB, NEWLINE, SPACE, DELETE = 0x09, 0x0A, 0x20, 0x7F
NOTHING, SPACES, ANYTHING = range(3)
LATIN_1_LETTERS = 0xC3  # the first byte of U+00C0 to U+00FF
PUNCTUATION = 0xE2  # the first byte of U+2000 to U+2FFF


def may_change(texts: Texts, config: CleaningConfig, end: bytes) -> npt.NDArray[np.uint8]:
    """Return for each text what cleaning may change: NOTHING, SPACES at the ends of its lines, or ANYTHING.

    ANYTHING also stands for texts that may be rejected, and for those that may end with the end token `end`.
    """
    if config.languages or config.quality or set(config.private.model_dump().values()) != {"keep"}:
        return np.full(len(texts), ANYTHING, np.uint8)
    # All texts are one array of bytes: each kind of byte is searched once, and a place is then given to its text by
    # bisecting the texts' ends. SPACES is written before ANYTHING, which wins where a text has both.
    begin, stop = int(texts.first[0]), int(texts.first[-1])
    data, first = texts.data[begin:stop], texts.first - begin
    ends = first[1:]
    if stop == begin:
        return np.full(len(texts), ANYTHING, np.uint8)
    spaces, others = ascii_places(data, ends)
    others += other_places(data, config.unicode == "nfkc")
    found = np.full(len(texts), NOTHING, np.uint8)
    last = data[np.maximum(ends - 1, 0)]
    found[last == NEWLINE] = SPACES
    found[np.searchsorted(ends, spaces, side="right")] = SPACES
    found[np.searchsorted(ends, np.concatenate(others), side="right")] = ANYTHING
    found[(ends == first[:-1]) | (last == end[-1] if end else False) | wrong_size(texts, config)] = ANYTHING
    return found


def ascii_places(data: Bytes, ends: Places) -> tuple[Places, list[Places]]:
    """Return where lines end with an ASCII space, and where control characters are or lines end with another space."""
    # A text's end is a line's end. Only the last byte of each line is looked at, not every space of the text.
    low = np.flatnonzero(data < SPACE)
    kinds = data[low]
    newlines = low[kinds == NEWLINE]
    line_ends = np.concatenate([newlines[newlines > 0], ends[ends > 0]]) - 1
    last = data[line_ends]
    beyond = line_ends[last >= 0x80]
    beyond = beyond[ends_with_space(data[beyond], data[beyond - 1])]
    controls = low[(kinds != TAB) & (kinds != NEWLINE)]
    return line_ends[(last == SPACE) | (last == TAB)], [controls, np.flatnonzero(data == DELETE), beyond]


def ends_with_space(last: Bytes, before: Bytes) -> Flags:
    """Return which characters, by their last two bytes, may be spaces: U+0085, U+00A0, U+1680, U+2000 to U+205F.

    Dashes and quotation marks, U+2010 to U+201E, end lines of books by the thousand; no space ends with their bytes.
    """
    found: Flags = np.isin(before, (0xC2, 0x9A, 0x80, 0x81)) & (last < 0xB0) & ((last < 0x90) | (last >= 0x9F))
    return found


def other_places(data: Bytes, compatible: bool) -> list[Places]:
    """Return where there are characters that cleaning may change: not Latin letters and common signs in good order.

    All below U+0300 and the signs from U+2002 to U+203F are in normal form NFC and never combine; a Latin letter before
    another character beyond ASCII may be mojibake. With `compatible`, the form is NFKC, and none is let through.
    """
    beyond = np.flatnonzero(data >= 0x80)
    if compatible or not len(beyond):
        return [beyond]
    # Characters are recognized by up to three bytes of UTF-8, read at every byte beyond ASCII: one that continues a
    # character is let through (`following`), since the lead byte before it has decided. Three zeros end the last one.
    padded = np.concatenate([data[beyond[0] :], np.zeros(3, np.uint8)])
    at = beyond - beyond[0]
    lead, second, third = padded[at], padded[at + 1], padded[at + 2]
    signs = (lead == PUNCTUATION) & (second == 0x80) & (third >= 0x82)
    currency = (lead == PUNCTUATION) & (second == 0x82) & (third == 0xAC)  # the euro
    below = (lead >= LATIN_1_LETTERS) & (lead < 0xCC) | (lead == 0xC2) & (second >= 0xA0)
    mojibake = (lead == LATIN_1_LETTERS) & (second >= 0x82) & (second <= 0xB4) & (third >= 0xC0)
    following = lead < 0xC0
    return [beyond[~(signs | currency | following | below) | mojibake]]


def wrong_size(texts: Texts, config: CleaningConfig) -> Flags:
    """Return which texts have too few or too many characters."""
    if config.min_chars <= 1 and config.max_chars is None:
        return np.zeros(len(texts), np.bool_)
    array = pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(texts.first), pa.py_buffer(texts.data))
    sizes = pc.utf8_length(array).to_numpy()
    most = np.inf if config.max_chars is None else config.max_chars
    return np.asarray((sizes < config.min_chars) | (sizes > most), np.bool_)
