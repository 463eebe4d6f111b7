"""One rank's part of a checkpoint as safetensors files, and any span of a tensor read back from all of them.

A file holds flat fp32 spans, each under its tensor's name; where it starts is in the header's metadata, as
torch.distributed.checkpoint spells it, so that torch's own HuggingFaceStorageReader reads these files too. The data are
one run of bytes in the header's order: a state that was copied into one buffer is written as it lies in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast

import torch

from cluster.errors import CheckpointError

SHARDING = "DCP_SHARDING_INFO"  # torch.distributed.checkpoint's key for where a span starts
CHUNK_BYTES = 8 << 20
ITEM_BYTES = 4  # fp32
MAX_OPEN = 128  # files; a process may often open 1,024
MAX_HEADER_BYTES = 100 << 20  # safetensors' own limit


@dataclass(frozen=True, kw_only=True)
class Span:
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


def header_of(spans: Sequence[Span]) -> bytes:
    """Return the file's beginning: 8 bytes of length, then JSON padded to 8 bytes (the safetensors format)."""
    header: dict[str, Any] = {
        "__metadata__": {
            "format": "pt",
            "DCP_VERSION": "1.0",
            SHARDING: json.dumps({part.key: {"saved_offsets": [part.start]} for part in spans}),
        }
    }
    offset = 0
    for part in spans:
        end = offset + part.numel * ITEM_BYTES
        header[part.key] = {"dtype": "F32", "shape": [part.numel], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_rank_file(path: Path, spans: Sequence[Span], data: Iterable[torch.Tensor]) -> FileFacts:
    """Write a rank's file, durable when this returns; each chunk is hashed while it is written.

    `data` are contiguous fp32 tensors in the memory of the host that together are the spans, in their order.
    Raises OSError as the disk gives it, ValueError if the data are not as long as the spans.
    """
    size = 0
    digest = hashlib.sha256()
    header = header_of(spans)
    with path.open("wb", buffering=0) as stream, ThreadPoolExecutor(1, "hash") as hashing:
        for chunk in chunks(header, data):
            hashed: Future[None] = hashing.submit(digest.update, chunk)
            write_all(stream.fileno(), chunk)
            write_out(stream.fileno(), size, len(chunk))
            hashed.result()
            size += len(chunk)
        os.fsync(stream.fileno())
    expected = len(header) + ITEM_BYTES * sum(part.numel for part in spans)
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
class StoredSpan:
    """Where a span lies: in which file, and at which byte."""

    start: int
    stop: int
    path: Path
    offset: int


class SpanIndex(Protocol):
    """Tells which files hold some elements of a tensor, so that no others are opened."""

    def files(self, key: str, start: int, stop: int) -> list[str]: ...


class StoredState:
    """The tensors of a committed checkpoint, flat, whatever number of ranks wrote them. Use as a context."""

    def __init__(self, folder: Path, names: Iterable[str], index: SpanIndex | None = None) -> None:
        """Open each file when a span in it is wanted; without an index, read the headers of all of them now.

        Raises CheckpointError for a file that is no rank's file.
        """
        self.folder, self.index = folder, index
        self.headers: dict[str, dict[str, StoredSpan]] = {}
        self.descriptors: OrderedDict[Path, int] = OrderedDict()
        self.all_spans: dict[str, list[StoredSpan]] = {}
        if index is None:
            for name in names:
                for key, span in self.header(name).items():
                    self.all_spans.setdefault(key, []).append(span)
            for found in self.all_spans.values():
                found.sort(key=lambda span: span.start)

    def header(self, name: str) -> dict[str, StoredSpan]:
        """Return what a file holds."""
        if name not in self.headers:
            self.headers[name] = dict(stored_spans(self.folder / name))
        return self.headers[name]

    def spans(self, key: str, start: int, stop: int) -> list[StoredSpan]:
        """Return the spans with these elements, by their start."""
        if self.index is None:
            return self.all_spans.get(key, [])
        headers = [self.header(name) for name in self.index.files(key, start, stop)]
        return sorted((header[key] for header in headers if key in header), key=lambda span: span.start)

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
        for span in self.spans(key, start, stop):
            first, last = max(start, span.start), min(stop, span.stop)
            if first >= last:
                continue
            if first != reached:
                break
            at = span.offset + (first - span.start) * ITEM_BYTES
            self.fill(span.path, at, memory[(first - start) * ITEM_BYTES : (last - start) * ITEM_BYTES])
            reached = last
        if reached != stop:
            raise CheckpointError(
                f"{key}: element {reached} is not stored exactly once; the checkpoint's files do not belong together"
            )
        if host is not out:
            out.copy_(host)
        return out

    def descriptor(self, path: Path) -> int:
        """Return an open descriptor; only the latest used ones stay open."""
        if path in self.descriptors:
            self.descriptors.move_to_end(path)
        else:
            if len(self.descriptors) >= MAX_OPEN:
                os.close(self.descriptors.popitem(last=False)[1])
            self.descriptors[path] = os.open(path, os.O_RDONLY)
        return self.descriptors[path]

    def fill(self, path: Path, offset: int, memory: memoryview) -> None:
        descriptor = self.descriptor(path)
        while memory:
            count = os.preadv(descriptor, [memory], offset)
            if count == 0:
                raise CheckpointError(f"{path}: ends before byte {offset + len(memory)}")
            memory, offset = memory[count:], offset + count


def stored_spans(path: Path) -> Iterator[tuple[str, StoredSpan]]:
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
            yield key, StoredSpan(start=start, stop=start + numel, path=path, offset=offset)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a rank's part of a checkpoint ({error})") from None
