"""Read the members of a zip file whose directory, at its end, is lost: each member has a header of its own.

The layout follows PKWARE's APPNOTE.TXT, sections 4.3.7 to 4.3.9 and 4.5.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from data_prep.files.bounded_io import CHUNK_BYTES

RECORD = struct.Struct("<4sHHHHHIIIHH")
LOCAL, DESCRIPTOR, CENTRAL = b"PK\x03\x04", b"PK\x07\x08", b"PK\x01\x02"
ENCRYPTED, SIZES_FOLLOW, UTF8 = 0x1, 0x8, 0x800
STORED, DEFLATED = 0, 8
ZIP64, IN_ZIP64 = 0x0001, 0xFFFFFFFF


class CutMember:
    """A member of a truncated zip: `read` raises EOFError, zlib.error or ValueError where it is damaged."""

    def __init__(self, file: BinaryIO, fields: tuple[int, ...], name: bytes, extra: bytes) -> None:
        _, flags, self.method, _, _, self.crc, packed, size, _, _ = fields
        self.file = file
        self.name = name.decode("utf-8", "surrogateescape") if flags & UTF8 else name.decode("cp437")
        self.is_encrypted, self.sizes_follow = bool(flags & ENCRYPTED), bool(flags & SIZES_FOLLOW)
        self.left = packed if packed != IN_ZIP64 else packed_size(extra, size)
        self.inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self.waiting = b""
        self.seen_crc = 0
        self.is_done = False

    @property
    def is_readable(self) -> bool:
        """Whether it is stored or deflated, not encrypted, and its end is known."""
        ends = self.method == DEFLATED or not self.sizes_follow
        return not self.is_encrypted and self.method in (STORED, DEFLATED) and ends

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none at its end. Raises ValueError if its checksum is wrong."""
        data = b""
        while not data and not self.is_done:
            data = self.inflated(size) if self.method == DEFLATED else self.stored(size)
        self.seen_crc = zlib.crc32(data, self.seen_crc)
        if not data:
            self.check()
        return data

    def stored(self, size: int) -> bytes:
        data = self.file.read(min(size, self.left))
        if not data and self.left:
            raise EOFError
        self.left -= len(data)
        self.is_done = not self.left
        return data

    def inflated(self, size: int) -> bytes:
        if not self.waiting:
            self.waiting = self.file.read(CHUNK_BYTES)
            if not self.waiting:
                raise EOFError
        data = self.inflater.decompress(self.waiting, size)
        self.waiting = self.inflater.unconsumed_tail
        if self.inflater.eof:
            self.is_done = True
            self.file.seek(-len(self.inflater.unused_data), 1)
            self.waiting = b""
            if self.sizes_follow:
                self.read_descriptor()
        return data

    def read_descriptor(self) -> None:
        """Read the checksum after the data, and skip the two sizes, of 4 or 8 bytes each, up to the next header."""
        at = self.file.tell()
        data = self.file.read(28)
        begin = 4 if data.startswith(DESCRIPTOR) else 0
        self.crc = int.from_bytes(data[begin : begin + 4], "little")
        sizes = (8, 16)
        found = [size for size in sizes if data[begin + 4 + size :][:4] in (LOCAL, CENTRAL)]
        self.file.seek(at + begin + 4 + (found or sizes)[0])

    def check(self) -> None:
        if self.seen_crc != self.crc:
            raise ValueError(f"{self.name}: wrong checksum")

    def skip(self) -> None:
        """Move to the end of the member without using its data."""
        if self.sizes_follow and not self.is_readable:
            raise ValueError(f"{self.name}: unknown end")
        if self.sizes_follow:
            while self.read(CHUNK_BYTES):
                pass
        else:
            self.file.seek(self.left, 1)


def packed_size(extra: bytes, size: int) -> int:
    """Return the compressed size from a header's extra fields; it follows the size, if that is there too."""
    while len(extra) >= 4:
        tag, length = struct.unpack_from("<HH", extra)
        values, extra = extra[4 : 4 + length], extra[4 + length :]
        if tag == ZIP64:
            return int.from_bytes(values[8:16] if size == IN_ZIP64 else values[:8], "little")
    raise ValueError("no compressed size")


def cut_members(file: BinaryIO) -> Iterator[CutMember]:
    """Yield the members in order, up to the first bytes that are not one; the caller reads or skips each in turn."""
    while True:
        data = file.read(RECORD.size)
        if len(data) < RECORD.size or not data.startswith(LOCAL):
            return
        _, *fields = RECORD.unpack(data)
        name, extra = file.read(fields[-2]), file.read(fields[-1])
        if len(name) + len(extra) < fields[-2] + fields[-1]:
            return
        yield CutMember(file, tuple(fields), name, extra)
