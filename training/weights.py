"""First weights of a run, read or made one stretch of a flattened parameter at a time."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from cluster.errors import CheckpointError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Weights(Protocol):
    """Where the first weights come from."""

    def part(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        """Return elements start..stop of the flattened parameter `name`."""
        ...

    def finish(self, elsewhere: Collection[str]) -> None:
        """Raise CheckpointError if something was not used that should have been; `elsewhere` names what others use."""
        ...


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie in a mapped safetensors file."""

    buffer: mmap.mmap
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    def flat(self, start: int, stop: int) -> torch.Tensor:
        """Return a view of elements start..stop; only the touched pages are read from the disk."""
        if start == stop:
            return torch.empty(0, dtype=self.dtype)
        first = self.offset + start * self.dtype.itemsize
        return torch.frombuffer(self.buffer, dtype=self.dtype, offset=first, count=stop - start)


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
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(f"{path}: {name} has type {entry['dtype']}; accepted: {', '.join(DTYPES)}")
        first = 8 + header_bytes + entry["data_offsets"][0]
        yield name, StoredTensor(mapped, DTYPES[entry["dtype"]], tuple(entry["shape"]), first)


class PretrainedWeights:
    """The weights of a Hugging Face folder: single file or sharded, safetensors only."""

    def __init__(self, folder: Path, base_prefix: str, tied: frozenset[str]) -> None:
        """`base_prefix` is put before the names of a file that was saved without the language-model head."""
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError(
                f"{folder}: no *.safetensors file; convert the model with transformers' save_pretrained first"
            )
        self.folder = folder
        self.prefix = f"{base_prefix}."
        self.tied = tied
        self.tensors = {name: tensor for path in files for name, tensor in stored_tensors(path)}
        self.used: set[str] = set()

    def stored_name(self, name: str) -> str:
        """Return a parameter's name in the files, which may have been saved without the language-model head."""
        return name if name in self.tensors else name.removeprefix(self.prefix)

    def part(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        stored_name = self.stored_name(name)
        if stored_name not in self.tensors:
            raise CheckpointError(f"{self.folder}: has no weights for the parameter {name}")
        tensor = self.tensors[stored_name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{self.folder}: {name} has shape {tensor.shape}, the model's configuration says {shape}"
            )
        self.used.add(stored_name)
        return tensor.flat(start, stop)

    def finish(self, elsewhere: Collection[str]) -> None:
        used = self.used | {self.stored_name(name) for name in elsewhere}
        unused = sorted(self.tensors.keys() - used - self.tied)
        if unused:
            names = ", ".join(unused[:3]) + (" ..." if len(unused) > 3 else "")
            raise CheckpointError(f"{self.folder}: {len(unused)} tensors have no place in the model: {names}")


class NewWeights:
    """Weights by the model's own rule of initialization, the same for every world size.

    The model's parts (its decoder layers, and what is around them) are made one after the other on the CPU, each from
    a seed of its own; what comes out of ZeRO's construction keeps torch's defaults, a first loss of 248 where
    ln(vocabulary) = 8.3 was due.
    """

    def __init__(self, skeleton: PreTrainedModel, seed: int) -> None:
        self.model = skeleton
        self.seed = seed
        self.layers = layer_names(skeleton)
        self.units = unit_of_parameters(skeleton, self.layers)
        self.made: tuple[str, Mapping[str, torch.Tensor]] = ("", {})

    def part(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        unit = self.units[name]
        if self.made[0] != unit:
            self.made = (unit, self.make(unit))
        return self.made[1][name].reshape(-1)[start:stop]

    def make(self, unit: str) -> Mapping[str, torch.Tensor]:
        """Make a part's parameters: children first, then the part itself, as transformers does for a whole model."""
        module = self.model.get_submodule(unit)
        whole = unit in self.layers
        module.to_empty(device="cpu", recurse=whole)
        digest = hashlib.sha256(f"{self.seed}/{unit}".encode()).digest()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int.from_bytes(digest[:8], "little"))
            for part in reversed(list(module.modules())) if whole else [module]:
                self.model._init_weights(part)
        values = {name: value.detach() for name, value in module.named_parameters(prefix=unit)}
        module.to("meta")
        return values

    def finish(self, elsewhere: Collection[str]) -> None:
        """Everything asked for was made; nothing can be left over."""


def made_buffers(skeleton: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the model's own buffers, such as the frequencies of rotary positions, in the precision of transformers.

    Like from_pretrained, which also begins with a model without memory, this asks the model's rule of initialization.
    """
    buffers: dict[str, torch.Tensor] = {}
    for name, module in skeleton.named_modules():
        if module._buffers and not module._parameters:
            module.to_empty(device="cpu", recurse=False)
            skeleton._init_weights(module)
            prefix = f"{name}." if name else ""
            buffers |= {prefix + own: value.detach().clone() for own, value in module.named_buffers(recurse=False)}
            module.to("meta")
    return buffers


def layer_names(model: nn.Module) -> list[str]:
    """Return the names of the modules that belong together: the decoder layers."""
    classes: Any = getattr(model, "_no_split_modules", None) or []
    return [name for name, module in model.named_modules() if type(module).__name__ in classes]


def unit_of_parameters(model: nn.Module, layers: list[str]) -> dict[str, str]:
    """Return, for each parameter, the module it is made with: its decoder layer, or the module that owns it."""
    return {
        name: next((layer for layer in layers if name.startswith(layer + ".")), name.rpartition(".")[0])
        for name, _ in model.named_parameters()
    }
