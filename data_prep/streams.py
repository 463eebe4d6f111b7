"""Bytes from a file, plain or compressed, never more at once than a document may have."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

DOCUMENT_BYTES = 32 * 2**20  # of one line, row or page: a tokenizer holds about 50 bytes for each byte of its text
EXPANSION_FREE_BYTES = 256 * 2**20  # what anything compressed may become, however small it is
EXPANSION_RATIO = 200  # above that: text shrinks 3- to 20-fold, bombs 1,000-fold and more
WINDOW_BYTES = 4 * 2**20  # a text file of more than DOCUMENT_BYTES is read in pieces of about this size
REACH_BYTES = 64 * 2**10  # how far past a window the end of a paragraph is looked for
CHUNK_BYTES = 2**20
END = sys.maxsize

TOO_LONG = f"longer than {DOCUMENT_BYTES >> 20} MiB"
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)  # OSError: gzip's and zstd's name for wrong bytes


class ObjectionError(Exception):
    """Why a record is rejected; raised and caught inside the reading of documents."""


class Expanding(io.RawIOBase):
    """The bytes of a compressed file, up to what an honest file expands to."""

    def __init__(self, inner: Any, packed_bytes: int) -> None:
        self.inner = inner
        self.left = max(EXPANSION_FREE_BYTES, EXPANSION_RATIO * packed_bytes)
        self.read_some: Callable[[int], bytes] = getattr(inner, "read1", inner.read)  # what is there before damage

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.read_some(len(buffer))
        except DAMAGE as error:
            raise_if_disk(error)
            raise ObjectionError(f"damaged compression ({type(error).__name__})") from None
        self.left -= len(data)
        if self.left < 0:
            raise ObjectionError(f"expands more than {EXPANSION_RATIO}-fold")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.inner.close()
        super().close()


def raise_if_disk(error: Exception) -> None:
    """Raise an error again if it is the disk's: one of content has no number."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def open_stream(path: Path, compression: str | None) -> BinaryIO:
    """Open a file for reading what it holds. Reading raises ObjectionError if its compression is damaged or a bomb."""
    if compression is None:
        return path.open("rb", buffering=CHUNK_BYTES)
    openers: dict[str, Callable[[Path], Any]] = {
        "gzip": gzip.open,
        "bz2": bz2.open,
        "xz": lzma.open,
        "zstd": lambda path: pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"),
    }
    return io.BufferedReader(Expanding(openers[compression](path), path.stat().st_size), CHUNK_BYTES)


def read_lines(stream: BinaryIO, start: int = 0, end: int = END) -> Iterator[bytes | ObjectionError]:
    """Yield the lines whose first byte lies in `start` to `end`, without their ends; an objection for too long ones."""
    at = start
    if start > 0:  # a line belongs to the part in which its first byte lies
        stream.seek(start - 1)
        at = start - 1 + skip_line(stream)
    while at < end:
        line = stream.readline(DOCUMENT_BYTES + 1)
        if not line:
            return
        at += len(line)
        if len(line) > DOCUMENT_BYTES and not line.endswith(b"\n"):
            at += skip_line(stream)
            yield ObjectionError(TOO_LONG)
        else:
            yield line.rstrip(b"\r\n")


def skip_line(stream: BinaryIO) -> int:
    """Read to the end of the line and return the number of bytes."""
    skipped = 0
    while chunk := stream.readline(CHUNK_BYTES):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


def read_texts(path: Path, compression: str | None, start: int, end: int) -> Iterator[bytes]:
    """Yield a text file whole, or, if it is too long for one document, the pieces whose window lies in the range."""
    with open_stream(path, compression) as stream:
        is_long = compression is None and path.stat().st_size > DOCUMENT_BYTES
        data = b"" if is_long else stream.read(DOCUMENT_BYTES + 1)
    if not is_long and len(data) <= DOCUMENT_BYTES:
        yield data
        return
    del data
    with open_stream(path, compression) as stream:
        yield from read_pieces(stream, start, end if compression is None else END)


def read_pieces(stream: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield the pieces of a long text whose windows begin in `start` to `end`.

    Where a piece begins follows from its window alone, so that every cut of the file into parts gives the same pieces.
    """
    first = -(-start // WINDOW_BYTES) * WINDOW_BYTES
    if first >= end:
        return
    if first:
        stream.seek(first)
    window = stream.read(WINDOW_BYTES + REACH_BYTES)
    begin = text_boundary(window[:REACH_BYTES]) if first else 0
    while len(window) > begin:
        following = text_boundary(window[WINDOW_BYTES:])
        yield window[begin : WINDOW_BYTES + following]
        first += WINDOW_BYTES
        if first >= end:
            return
        begin = following
        window = window[WINDOW_BYTES:] + stream.read(WINDOW_BYTES)


def text_boundary(data: bytes) -> int:
    """Return where a text may be cut: after the first paragraph, else line, else word, else character."""
    for mark in (b"\n\n", b"\n", b" "):
        found = data.find(mark)
        if found >= 0:
            return found + len(mark)
    starts = (i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80)
    return next(starts, 0)
