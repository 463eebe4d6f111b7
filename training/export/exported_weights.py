"""The safetensors files of an export: written in chunks, in the Hub's layout, and checked by digest when read back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from transformers import PreTrainedModel
from xxhash import xxh3_128

from cluster.disk.atomic_files import write_json
from cluster.errors import CheckpointError
from cluster.model_files import WEIGHTS_INDEX
from training.checkpoints.shard_files import bytes_of, write_all
from training.models.name_conversions import Conversion, Outgoing, saved_tensors
from training.models.stored_tensors import DTYPES

KINDS = {dtype: kind for kind, dtype in DTYPES.items()}  # as safetensors spells them
CHUNK_ELEMENTS = 1 << 17  # half a megabyte of fp32: stays in the processor's cache

OutgoingTensors = Mapping[str, Outgoing]
Digests = Mapping[str, bytes]  # 128 bits each
Reader = Callable[[str, int, torch.Tensor], torch.Tensor]  # (name, start, out): fills `out` with elements from `start`


class ConvertedWeights:
    """The tensors of an export, by name and in their precision, converted from those that a reader returns.

    Needs the memory of one chunk; for a conversion, that of its inputs, or of one expert of them.
    """

    def __init__(self, read: Reader, plan: OutgoingTensors, model: PreTrainedModel | None = None) -> None:
        """`model`, on the meta device, is needed if the plan has conversions."""
        self.read, self.plan, self.model = read, plan, model
        self.shapes = {} if model is None else {name: tensor.shape for name, tensor in saved_tensors(model).items()}
        self.master = torch.empty(CHUNK_ELEMENTS)
        self.buffers = {dtype: torch.empty(CHUNK_ELEMENTS, dtype=dtype) for dtype in (torch.float16, torch.bfloat16)}
        self.made: tuple[tuple[str, int | None], Mapping[str, torch.Tensor]] = (("", None), {})

    def chunks(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the flattened tensor in order; a chunk is valid until the next one is requested."""
        wanted = self.plan[name]
        numel = math.prod(wanted.shape)
        if isinstance(wanted.source, str) and not wanted.dtype.is_floating_point:
            yield self.read(wanted.source, 0, torch.empty(numel, dtype=wanted.dtype))
            return
        for start in range(0, numel, CHUNK_ELEMENTS):
            chunk = self.chunk(wanted, start, min(CHUNK_ELEMENTS, numel - start))
            buffer = self.buffers.get(wanted.dtype)
            yield chunk if buffer is None else buffer[: chunk.numel()].copy_(chunk)

    def chunk(self, wanted: Outgoing, start: int, count: int) -> torch.Tensor:
        """Return `count` elements of a tensor in fp32."""
        if isinstance(wanted.source, str):
            return self.read(wanted.source, start, self.master[:count])
        return self.converted(wanted.source, wanted.expert)[wanted.output].reshape(-1)[start : start + count]

    def converted(self, conversion: Conversion, expert: int | None) -> Mapping[str, torch.Tensor]:
        """Return the outputs of a conversion; those of the last one are kept."""
        if self.made[0] != (conversion.key, expert):
            self.made = (("", None), {})  # free its memory before the next inputs are read
            inputs = {
                pattern: [self.input(name, expert) for name in names] for pattern, names in conversion.inputs.items()
            }
            if self.model is None:
                raise RuntimeError(f"{conversion.key}: a conversion needs the model")
            self.made = ((conversion.key, expert), conversion.run(self.model, inputs))
        return self.made[1]

    def input(self, name: str, expert: int | None) -> torch.Tensor:
        """Read a tensor of the model whole, or one index of its first dimension."""
        whole = self.shapes[name]
        shape = whole if expert is None else (1, *whole[1:])
        numel = math.prod(shape)
        return self.read(name, (expert or 0) * numel, torch.empty(numel)).reshape(shape)


def write_weights(folder: Path, weights: ConvertedWeights, shard_bytes: int) -> dict[Path, Digests]:
    """Write the safetensors files and, if there are several, their index; return each file's digests by tensor."""
    outlines = {
        name: torch.empty(wanted.shape, dtype=wanted.dtype, device="meta") for name, wanted in weights.plan.items()
    }
    split = split_torch_state_dict_into_shards(outlines, max_shard_size=shard_bytes)
    files = {
        folder / name: write_tensors(folder / name, keys, weights) for name, keys in split.filename_to_tensors.items()
    }
    if split.is_sharded:
        write_json(folder / WEIGHTS_INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    return files


def write_tensors(path: Path, names: Collection[str], weights: ConvertedWeights) -> Digests:
    """Write a safetensors file: 8 bytes of header length, JSON header, data in the header's order.

    Return the digest of each tensor's bytes, computed before they are written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        wanted = weights.plan[name]
        end = offset + math.prod(wanted.shape) * wanted.dtype.itemsize
        header[name] = {"dtype": KINDS[wanted.dtype], "shape": list(wanted.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligned, so that readers can memory-map the tensors
    with path.open("wb", buffering=0) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        hashes = {name: xxh3_128() for name in names}
        for name in names:
            for chunk in weights.chunks(name):
                data = bytes_of(chunk.view(torch.uint8))
                hashes[name].update(data)
                write_all(stream.fileno(), data)
    return {name: found.digest() for name, found in hashes.items()}


def check_bits(path: Path, plan: OutgoingTensors, digests: Digests) -> None:
    """Raise CheckpointError unless every tensor, as the safetensors library reads it, has its digest."""
    for name, digest in digests.items():
        with safe_open(path, framework="pt") as stored:  # opened per tensor, so that its mapped pages are released
            tensor = stored.get_tensor(name)
        content = bytes_of(tensor.reshape(-1).view(torch.uint8))
        is_same = (tensor.dtype, tuple(tensor.shape)) == (plan[name].dtype, plan[name].shape)
        if not is_same or xxh3_128(content).digest() != digest:
            raise CheckpointError(
                f"{path}: {name} reads back differently from what was written; check the disk and export again"
            )
