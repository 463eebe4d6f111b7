"""A text file as one document, or as several if it is too long for one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from data_prep.files.bounded_io import DOCUMENT_BYTES, RecordError, require_whole, valid_beginning

WINDOW_BYTES = 4 * 2**20  # a text file of more than DOCUMENT_BYTES is read in pieces of about this size
REACH_BYTES = 64 * 2**10  # how far past a window the end of a paragraph is looked for


def read_texts(stream: BinaryIO, start: int, end: int, *, is_long: bool = False) -> Iterator[bytes]:
    """Yield a text whole, or, if it is too long for one document, the pieces whose window lies in the range.

    `is_long` follows from the file's size. Of a damaged file, yields what is before the damage, up to its last whole
    paragraph; then raises RecordError.
    """
    if not is_long:
        data, problem = filled(stream, b"", DOCUMENT_BYTES + 1)
        if len(data) <= DOCUMENT_BYTES:
            if data or problem is None:
                yield data
            if problem is not None:
                raise problem
            return
        yield from read_pieces(stream, start, end, data)
        return
    yield from read_pieces(stream, start, end)


def read_pieces(stream: BinaryIO, start: int, end: int, ahead: bytes = b"") -> Iterator[bytes]:
    """Yield the pieces of a long text whose windows begin in `start` to `end`; its first bytes may be read `ahead`.

    Where a piece begins follows from its window alone, so that every cut of the file into parts gives the same pieces.
    """
    first = -(-start // WINDOW_BYTES) * WINDOW_BYTES
    if first >= end:
        return
    if first:
        stream.seek(first)
    window, problem = filled(stream, ahead, WINDOW_BYTES + REACH_BYTES)
    begin = text_boundary(window[:REACH_BYTES]) if first else 0
    while len(window) > begin:
        following = text_boundary(window[WINDOW_BYTES : WINDOW_BYTES + REACH_BYTES])
        yield window[begin : WINDOW_BYTES + following]
        first += WINDOW_BYTES
        if first >= end:
            return
        begin = following
        window = window[WINDOW_BYTES:]
        if problem is None:
            window, problem = filled(stream, window, WINDOW_BYTES + REACH_BYTES)
    if problem is not None:
        raise problem


def filled(stream: BinaryIO, data: bytes, size: int) -> tuple[bytes, RecordError | None]:
    """Return data with what follows it, up to `size` bytes; where that is damaged, up to a boundary, and the reason."""
    data += stream.read(max(size - len(data), 0))
    if len(data) >= size:
        return data, None
    try:
        require_whole(stream)
    except RecordError as problem:
        data = valid_beginning(data)  # what follows was unpacked wrong before that was noticed
        ends = (data.rfind(mark) + len(mark) for mark in (b"\n\n", b"\n", b" ") if mark in data)
        return data[: next(ends, 0)], problem
    return data, None


def text_boundary(data: bytes) -> int:
    """Return where a text may be cut: after the first paragraph, else line, else word, else character."""
    for mark in (b"\n\n", b"\n", b" "):
        found = data.find(mark)
        if found >= 0:
            return found + len(mark)
    starts = (i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80)
    return next(starts, 0)
