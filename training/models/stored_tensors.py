"""The weights of a Hugging Face folder: its safetensors files, and views of the tensors in them."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from cluster.errors import CheckpointError
from cluster.model_files import WEIGHTS, WEIGHTS_INDEX, weight_files

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
    """A tensor's bytes in a memory-mapped safetensors file; `kind` is its dtype in safetensors' spelling."""

    buffer: mmap.mmap
    kind: str
    shape: tuple[int, ...]
    offset: int

    def flat(self, start: int, stop: int) -> torch.Tensor:
        """Return a view of elements start..stop of the flattened tensor; only the pages in use are read from disk."""
        dtype = DTYPES[self.kind]
        if start == stop:
            return torch.empty(0, dtype=dtype)
        first = self.offset + start * dtype.itemsize
        return torch.frombuffer(self.buffer, dtype=dtype, offset=first, count=stop - start)

    def whole(self) -> torch.Tensor:
        """Return a view of the tensor."""
        return self.flat(0, torch.Size(self.shape).numel()).reshape(self.shape)


def weight_paths(folder: Path) -> list[Path]:
    """Return the paths of a model's weight files. Raises CheckpointError if any is missing."""
    names = weight_files(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing == [WEIGHTS]:
        raise CheckpointError(
            f"{folder}: has neither {WEIGHTS} nor {WEIGHTS_INDEX}; convert the model with transformers'"
            " save_pretrained first"
        )
    if missing:
        some = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise CheckpointError(
            f"{folder / WEIGHTS_INDEX}: {len(missing)} of the {len(names)} files it names are missing: {some};"
            " fetch them"
        )
    return [folder / name for name in names]


def stored_names(folder: Path) -> list[str]:
    """Return the names of all tensors in a folder's weight files."""
    return [name for path in weight_paths(folder) for name, _ in stored_tensors(path)]


def stored_tensors(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Memory-map a safetensors file and yield its tensors (8 bytes of header length, JSON header, data).

    Raises CheckpointError if the file is damaged or cut short.
    """
    try:
        with safe_open(path, framework="pt"):  # the library checks header, offsets and length
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error}); fetch it again") from None
    with path.open("rb") as stream:
        mapped = mmap.mmap(
            stream.fileno(), 0, access=mmap.ACCESS_COPY
        )  # copy-on-write: torch warns about read-only memory
    header_bytes = int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8 : 8 + header_bytes])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        first = 8 + header_bytes + entry["data_offsets"][0]
        yield name, StoredTensor(mapped, entry["dtype"], tuple(entry["shape"]), first)
