"""One rank's part of a checkpoint as safetensors files, and any stretch of a tensor read back from all of them.

A file holds flat fp32 stretches, each under its tensor's name; where it starts stands in the header's metadata, as
torch.distributed.checkpoint spells it, so that torch's own HuggingFaceStorageReader reads these files too. The data are
one run of bytes in the header's order: a state that was copied into one buffer is written as it lies in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import torch

from cluster.errors import CheckpointError

SHARDING = "DCP_SHARDING_INFO"  # torch.distributed.checkpoint's key for where a stretch starts
CHUNK_BYTES = 8 << 20
ITEM_BYTES = 4  # fp32
MAX_HEADER_BYTES = 100 << 20  # safetensors' own limit


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Elements start..start + numel of the flat tensor `key`."""

    key: str
    start: int
    numel: int


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What a commit file says of a file."""

    bytes: int
    sha256: str


def rank_file_name(kind: str, rank: int, world_size: int) -> str:
    """Return the name of a rank's file of one kind: master weights or a moment."""
    return f"{kind}-{rank:05d}-of-{world_size:05d}.safetensors"


def header_of(stretches: Sequence[Stretch]) -> bytes:
    """Return the file's beginning: 8 bytes of length, then JSON padded to 8 bytes (the safetensors format)."""
    header: dict[str, Any] = {
        "__metadata__": {
            "format": "pt",
            "DCP_VERSION": "1.0",
            SHARDING: json.dumps({part.key: {"saved_offsets": [part.start]} for part in stretches}),
        }
    }
    offset = 0
    for part in stretches:
        end = offset + part.numel * ITEM_BYTES
        header[part.key] = {"dtype": "F32", "shape": [part.numel], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_rank_file(path: Path, stretches: Sequence[Stretch], data: Iterable[torch.Tensor]) -> FileFacts:
    """Write a rank's file, durable when this returns; each chunk is hashed while it is written.

    `data` are contiguous fp32 tensors in the memory of the host that together are the stretches, in their order.
    Raises OSError as the disk gives it, ValueError if the data are not as long as the stretches.
    """
    size = 0
    digest = hashlib.sha256()
    header = header_of(stretches)
    with path.open("wb", buffering=0) as stream, ThreadPoolExecutor(1, "hash") as hashing:
        for chunk in chunks(header, data):
            hashed: Future[None] = hashing.submit(digest.update, chunk)
            write_all(stream.fileno(), chunk)
            write_out(stream.fileno(), size, len(chunk))
            hashed.result()
            size += len(chunk)
        os.fsync(stream.fileno())
    expected = len(header) + ITEM_BYTES * sum(part.numel for part in stretches)
    if size != expected:
        raise ValueError(f"{path}: {size} bytes were given, {expected} announced")
    return FileFacts(bytes=size, sha256=digest.hexdigest())


def chunks(header: bytes, data: Iterable[torch.Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for tensor in data:
        view = bytes_of(tensor)
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU."""
    return memoryview(cast(Any, tensor.detach().numpy())).cast("B") if tensor.numel() else memoryview(b"")


def write_all(descriptor: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(descriptor, chunk) :]


def write_out(descriptor: int, start: int, size: int) -> None:
    """Have the disk begin with written bytes, without waiting; the page cache need not keep them.

    Less is left for the fsync, and the kernel finds pages for the next bytes more easily: a file of 1.2 GB is durable
    in less than half the time.
    """
    os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True, kw_only=True)
class StoredStretch:
    """Where a stretch lies: in which file, and at which byte."""

    start: int
    stop: int
    path: Path
    offset: int


class StoredState:
    """The tensors of a committed checkpoint, flat, whatever number of ranks wrote them. Use as a context."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Read the headers. Raises CheckpointError for a file that is no rank's file."""
        self.stretches: dict[str, list[StoredStretch]] = {}
        self.descriptors: dict[Path, int] = {}
        for path in paths:
            for key, stretch in stored_stretches(path):
                self.stretches.setdefault(key, []).append(stretch)
        for found in self.stretches.values():
            found.sort(key=lambda stretch: stretch.start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()

    def read(self, key: str, start: int, out: torch.Tensor) -> torch.Tensor:
        """Fill `out`, flat and fp32 on any device, with the elements of `key` from `start` on; return it.

        Only the bytes that are asked for are read. Raises CheckpointError where an element is stored not once.
        """
        stop = start + out.numel()
        host = out if out.device.type == "cpu" and out.is_contiguous() else torch.empty(out.numel())
        memory = bytes_of(host)
        reached = start
        for stretch in self.stretches.get(key, []):
            first, last = max(start, stretch.start), min(stop, stretch.stop)
            if first >= last:
                continue
            if first != reached:
                break
            at = stretch.offset + (first - stretch.start) * ITEM_BYTES
            self.fill(stretch.path, at, memory[(first - start) * ITEM_BYTES : (last - start) * ITEM_BYTES])
            reached = last
        if reached != stop:
            raise CheckpointError(f"{key}: element {reached} is not stored once; the checkpoint's files do not fit")
        if host is not out:
            out.copy_(host)
        return out

    def fill(self, path: Path, offset: int, memory: memoryview) -> None:
        if path not in self.descriptors:
            self.descriptors[path] = os.open(path, os.O_RDONLY)
        while memory:
            count = os.preadv(self.descriptors[path], [memory], offset)
            if count == 0:
                raise CheckpointError(f"{path}: ends before byte {offset + len(memory)}")
            memory, offset = memory[count:], offset + count


def stored_stretches(path: Path) -> Iterator[tuple[str, StoredStretch]]:
    """Yield what a rank's file holds, by its header."""
    try:
        with path.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            if header_bytes > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {header_bytes} bytes")
            header = json.loads(stream.read(header_bytes))
        starts = json.loads(header.pop("__metadata__")[SHARDING])
        for key, entry in header.items():
            (numel,), (begin, end) = entry["shape"], entry["data_offsets"]
            if entry["dtype"] != "F32" or end - begin != numel * ITEM_BYTES:
                raise ValueError(f"{key} is {entry}")
            (start,) = starts[key]["saved_offsets"]
            offset = 8 + header_bytes + begin
            yield key, StoredStretch(start=start, stop=start + numel, path=path, offset=offset)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a rank's part of a checkpoint ({error})") from None
