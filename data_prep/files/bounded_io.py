"""Read plain or compressed files, never holding more than one document may have."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

DOCUMENT_BYTES = 32 * 2**20  # of one line, row or page: a tokenizer needs about 50 bytes of memory per byte of text
EXPANSION_FREE_BYTES = 256 * 2**20  # any compressed file may expand to this, however small it is
EXPANSION_RATIO = 200  # beyond that: text expands 3- to 20-fold, bombs 1,000-fold and more
CHUNK_BYTES = 2**20
HEADER_BYTES = 256
WRONG_BYTES = "shardline.wrong_bytes"
END = sys.maxsize

TOO_LONG = f"longer than {DOCUMENT_BYTES >> 20} MiB"
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)  # OSError: what gzip and zstd raise for damaged bytes


class RecordError(Exception):
    """Why a record is rejected; raised and caught while documents are read."""


class DamageError(RecordError):
    """Why nothing after this point of a file can be read."""


class CarefulStep(NamedTuple):
    """One way to read near damage: start `before` compressed bytes ahead of the current offset, feed `packed` bytes at
    a time, and request `unpacked` bytes of output at a time.
    """

    before: int
    packed: int
    unpacked: int


CAREFUL_STEPS = (CarefulStep(192 * 2**10, 64, 4096), CarefulStep(512, 1, 1))  # libraries read up to 64 KiB ahead


class Expanding(io.RawIOBase):
    """The decompressed bytes of a file, up to a limit that only a decompression bomb exceeds.

    At damage, the stream first ends as if the file were whole, so that a reader gets everything before the damage; the
    next read raises RecordError. `require_whole` tells the two ends apart.
    """

    def __init__(self, path: Path, opener: Callable[[Any], Any]) -> None:
        self.path = path
        self.opener = opener
        self.left = max(EXPANSION_FREE_BYTES, EXPANSION_RATIO * path.stat().st_size)
        self.given = 0
        self.problem: DamageError | None = None
        self.steps = iter(CAREFUL_STEPS)
        self.step = CHUNK_BYTES
        self.start(path.open("rb", buffering=0))

    def start(self, packed: io.RawIOBase) -> None:
        self.packed = packed
        self.inner = self.opener(packed)
        self.read_some: Callable[[int], bytes] = getattr(self.inner, "read1", self.inner.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.problem is not None:
            raise self.problem
        data = self.take(len(buffer))
        self.given += len(data)
        self.left -= len(data)
        if self.left < 0:
            raise RecordError(f"expands more than {EXPANSION_RATIO}-fold")
        buffer[: len(data)] = data
        return len(data)

    def take(self, size: int) -> bytes:
        """Return the next bytes.

        A library that meets damage discards what it had decompressed in the same call. So the file is read again from
        its beginning, the bytes already returned are skipped, and near the damage the compressed bytes are fed a few
        and then one at a time: everything that decompresses before the damage comes out.
        """
        while True:
            try:
                return self.read_some(min(size, self.step))
            except DAMAGE as error:
                raise_if_disk(error)
                careful = next(self.steps, None)
                if careful is None:
                    self.problem = DamageError(f"damaged compression ({type(error).__name__})")
                    return b""
                self.read_again(careful)

    def read_again(self, careful: CarefulStep) -> None:
        careful_from = max(self.packed.tell() - careful.before, 0)
        self.packed.close()
        self.step = careful.unpacked
        self.start(Trickle(self.path, careful_from, careful.packed))
        skipped = 0
        while skipped < self.given and (data := self.read_some(min(self.given - skipped, CHUNK_BYTES))):
            skipped += len(data)

    def close(self) -> None:
        self.inner.close()
        self.packed.close()
        super().close()


class Trickle(io.FileIO):
    """A file that returns few bytes per read from an offset on; the short reads of a header are not split."""

    def __init__(self, path: Path, careful_from: int, step: int) -> None:
        super().__init__(path, "rb")
        self.careful_from = careful_from
        self.step = step

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = CHUNK_BYTES if size is None or size < 0 else size
        before = max(self.careful_from - self.tell(), self.step)
        return super().read(wanted if wanted < HEADER_BYTES else min(wanted, before)) or b""


class Transcoded(io.RawIOBase):
    """A stream's text in UTF-8, with line feeds at the ends of lines.

    Bytes that are invalid in its encoding become the byte 0xFF, which never occurs in UTF-8: their record is rejected.
    """

    def __init__(self, inner: BinaryIO, encoding: str | None, *, cr_lines: bool) -> None:
        codecs.register_error(WRONG_BYTES, lambda error: ("\udcff", getattr(error, "end", 0)))
        self.inner = inner
        self.decoder = codecs.getincrementaldecoder(encoding)(WRONG_BYTES) if encoding is not None else None
        self.cr_lines = cr_lines
        self.pending = b""
        self.is_first = True
        self.has_ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.pending and not self.has_ended:
            data = self.inner.read1(CHUNK_BYTES)  # type: ignore[attr-defined]
            self.pending = self.transcoded(data)
            self.has_ended = not data
        size = min(len(buffer), len(self.pending))
        buffer[:size], self.pending = self.pending[:size], self.pending[size:]
        if size == 0:
            self.has_ended = False  # the next read asks the inner stream again, which raises if it was damaged
        return size

    def transcoded(self, data: bytes) -> bytes:
        if self.decoder is not None:
            text = self.decoder.decode(data, not data)
            if text and self.is_first:
                text = text.removeprefix("\ufeff")
                self.is_first = False
            data = text.encode("utf-8", "surrogateescape")
        return data.replace(b"\r", b"\n") if self.cr_lines else data

    def close(self) -> None:
        self.inner.close()
        super().close()


def raise_if_disk(error: Exception) -> None:
    """Raise an error again if the disk failed: an error about the content has no errno."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


OPENERS: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda packed: gzip.GzipFile(fileobj=packed, mode="rb"),
    "bz2": bz2.open,
    "xz": lzma.open,
    "zstd": lambda packed: pa.CompressedInputStream(pa.PythonFile(packed, "r"), "zstd"),
}


def open_stream(
    path: Path, compression: str | None, encoding: str | None = None, *, cr_lines: bool = False
) -> BinaryIO:
    """Open a file to read its decompressed content, transcoded to UTF-8 if an encoding is given.

    The stream ends where its compression is damaged, and the next read raises RecordError; a bomb raises at once.
    """
    if compression is None:
        stream: BinaryIO = path.open("rb", buffering=CHUNK_BYTES)
    else:
        stream = io.BufferedReader(Expanding(path, OPENERS[compression]), CHUNK_BYTES)
    if encoding is None and not cr_lines:
        return stream
    return io.BufferedReader(Transcoded(stream, encoding, cr_lines=cr_lines), CHUNK_BYTES)


def require_whole(stream: BinaryIO) -> None:
    """Raise RecordError if a stream that was read to its end ended at damage."""
    stream.read(1)


def read_page(stream: BinaryIO, limit: int) -> bytes:
    """Return a whole stream. Raises RecordError if it is longer than `limit` bytes or damaged."""
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise RecordError(f"page of more than {limit >> 20} MiB")
    require_whole(stream)
    return data


def read_lines(stream: BinaryIO, start: int = 0, end: int = END) -> Iterator[bytes | RecordError]:
    """Yield the lines whose first byte lies in [start, end), without line ends; an RecordError for one too long."""
    at = start
    if start > 0:  # a line belongs to the range that holds its first byte
        stream.seek(start - 1)
        at = start - 1 + skip_line(stream)
    while at < end:
        line = stream.readline(DOCUMENT_BYTES + 1)
        if len(line) <= DOCUMENT_BYTES and not line.endswith(b"\n"):
            require_whole(stream)  # else the line was cut by damage
        if not line:
            return
        at += len(line)
        if len(line) > DOCUMENT_BYTES and not line.endswith(b"\n"):
            at += skip_line(stream)
            yield RecordError(TOO_LONG)
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


def valid_beginning(data: bytes) -> bytes:
    """Return data up to the first byte that is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start]
    return data
