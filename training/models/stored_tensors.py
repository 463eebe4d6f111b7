"""The safetensors files of a Hugging Face folder: which ones hold the model, and views of the tensors in them."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from cluster.errors import CheckpointError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie in a mapped safetensors file; `kind` is its type as safetensors spells it."""

    buffer: mmap.mmap
    kind: str
    shape: tuple[int, ...]
    offset: int

    def flat(self, start: int, stop: int) -> torch.Tensor:
        """Return a view of elements start..stop; only the touched pages are read from the disk."""
        dtype = DTYPES[self.kind]
        if start == stop:
            return torch.empty(0, dtype=dtype)
        first = self.offset + start * dtype.itemsize
        return torch.frombuffer(self.buffer, dtype=dtype, offset=first, count=stop - start)

    def whole(self) -> torch.Tensor:
        """Return a view of the tensor."""
        return self.flat(0, torch.Size(self.shape).numel()).reshape(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers reads a model from, and no other that may lie beside them.

    Mistral's consolidated.safetensors, adapters and other formats are the same weights again under other names, or
    another model's. Raises CheckpointError if there are none, or if the index names one that is not there.
    """
    if (folder / WEIGHTS).is_file():  # before the index, as transformers looks for them
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise CheckpointError(
            f"{folder}: neither {WEIGHTS} nor {INDEX}; convert the model with transformers' save_pretrained first"
        )
    names = indexed_files(folder / INDEX)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        some = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise CheckpointError(
            f"{folder / INDEX}: {len(missing)} of the {len(names)} files it names are missing: {some}; fetch them"
        )
    return [folder / name for name in names]


def indexed_files(index: Path) -> list[str]:
    """Return the names of the files that an index names, there or not."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: not an index of safetensors files ({error!r}); fetch it again") from None


def stored_names(folder: Path) -> list[str]:
    """Return the names of all tensors of a folder's model."""
    return [name for path in weight_files(folder) for name, _ in stored_tensors(path)]


def stored_tensors(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Map a safetensors file and yield its tensors (format: 8 bytes of header length, JSON header, data)."""
    try:
        with safe_open(path, framework="pt"):  # the library's own check of header, offsets and length
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); fetch it again") from None
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)  # COPY: torch wants writable memory
    header_bytes = int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8 : 8 + header_bytes])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        first = 8 + header_bytes + entry["data_offsets"][0]
        yield name, StoredTensor(mapped, entry["dtype"], tuple(entry["shape"]), first)
