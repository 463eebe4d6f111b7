"""Where the ids of an engine are compared with those of `tokenizers` in a slice: a sample with a bounded cost.

Pre-tokenizers differ at the borders between kinds of characters, so a text is compared where any two kinds meet for the
first time in the slice; and at places that grow sparser, whatever is there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Pairs = npt.NDArray[np.uint16]

WINDOW = 64  # bytes around a meeting of kinds that are compared
CHUNK = 2**15  # bytes looked at together, an even number: their pairs stay in the cache
FIRST_STRIDE, GROWTH = 4096, 1.05  # bytes between the places that are compared in any case, and their growth


class ParitySample:
    """The places of one slice that are compared; a new slice begins a new sample."""

    def __init__(self) -> None:
        self.unmet = np.ones(2**16, dtype=np.bool_)
        self.position = self.next_place = 0
        self.stride = float(FIRST_STRIDE)

    def places(self, texts: Sequence[bytes], joined: bytes) -> Iterator[tuple[int, list[int]]]:
        """Yield the texts to compare and where: near each new meeting of kinds, and at places ever further apart."""
        # The stride grows by GROWTH with each place, so the places of a slice grow as the logarithm of its bytes.
        regular = []
        while self.next_place < self.position + len(joined):
            regular.append(self.next_place - self.position)
            self.next_place += int(self.stride)
            self.stride *= GROWTH
        self.position += len(joined)
        places = np.array(sorted([*self.new_meetings(joined), *regular]), dtype=np.int64)
        ends = np.cumsum([len(text) for text in texts])
        owners = np.searchsorted(ends, places, side="right")
        for index in np.unique(owners).tolist():
            begin = int(ends[index]) - len(texts[index])
            yield index, [max(0, at - begin - WINDOW // 2) for at in places[owners == index].tolist()]

    def new_meetings(self, raw: bytes) -> list[int]:
        """Return where two kinds of characters meet for the first time in this slice."""
        # A pair of bytes read as one 16-bit number indexes a table of what has not met yet. Pairs overlap, so two views
        # of the bytes, the second one byte later, have them all; nearly every chunk has nothing new.
        places = []
        for begin in range(0, len(raw) - 1, CHUNK):
            for at in range(begin, min(begin + 2, len(raw) - 1)):  # every pair of bytes: those from even, then from odd
                pairs = np.frombuffer(raw, np.uint16, min(CHUNK, len(raw) - at) // 2, at)
                if self.unmet.take(pairs).any():
                    places += [at + 2 * number for number in self.met(pairs)]
        return places

    def met(self, pairs: Pairs) -> Iterator[int]:
        """Yield which of these pairs of bytes are the first of their kinds; from now on these kinds have met."""
        for number in np.flatnonzero(self.unmet.take(pairs)).tolist():
            if self.unmet[pairs[number]]:
                self.unmet[alike(int(pairs[number]))] = False
                yield number


def excerpts_at(text: bytes, places: list[int]) -> Iterator[bytes]:
    """Yield WINDOW bytes from each of the sorted places, without the pieces of characters that the window cuts."""
    for at in apart(places):
        yield text[at : at + WINDOW].decode(errors="ignore").encode()


def apart(begins: list[int]) -> list[int]:
    """Return sorted places without those that the window of an earlier one covers."""
    result: list[int] = []
    for begin in begins:
        if not result or begin - result[-1] > WINDOW // 2:
            result.append(begin)
    return result


def kinds_of_bytes() -> npt.NDArray[np.uint8]:
    """Return the kind of each byte: letters by case, digits, each other ASCII byte, each first byte of UTF-8 beyond it.

    A first byte tells 64 characters, or a script, apart; a following one tells a quarter of them.
    """
    kinds = [f"a{b >= 97}" if chr(b).isalpha() else "0" if chr(b).isdigit() else chr(b) for b in range(128)]
    kinds += [f"+{b >> 4}" for b in range(128, 192)] + [f"^{b}" for b in range(192, 256)]
    return np.unique(kinds, return_inverse=True)[1].astype(np.uint8)


KINDS = kinds_of_bytes()


@lru_cache(maxsize=2**16)
def alike(pair: int) -> Pairs:
    """Return the pairs of bytes, each as the number that it is in memory, whose kinds are those of `pair`."""
    firsts, seconds = (np.flatnonzero(KINDS[byte] == KINDS) for byte in pair.to_bytes(2, sys.byteorder))
    both = np.stack(np.meshgrid(firsts, seconds), axis=-1).astype(np.uint8)
    return both.reshape(-1, 2).view(np.uint16).ravel()
