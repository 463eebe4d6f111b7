"""Pretrained weights of a Hugging Face folder, read one span of a flattened tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from cluster.errors import CheckpointError
from training.models.name_conversions import Conversion, incoming, not_ignorable
from training.models.stored_tensors import DTYPES, StoredTensor, stored_tensors, weight_paths


class Weights(Protocol):
    """A source of initial weights: parameters and persistent buffers."""

    def part(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        """Return elements start..stop of the flattened tensor `name`."""
        ...

    def finish(self, elsewhere: Collection[str]) -> None:
        """Raise CheckpointError if a stored tensor was never used; `elsewhere` names those that other code reads."""
        ...


class PretrainedWeights:
    """The weights of a Hugging Face folder, in one safetensors file or several, as from_pretrained would load them."""

    def __init__(self, folder: Path, skeleton: PreTrainedModel) -> None:
        """Memory-map the files, reading only headers. Raises CheckpointError if one is incomplete, or quantized."""
        quantized = getattr(skeleton.config, "quantization_config", None)
        if quantized is not None:
            raise CheckpointError(
                f"{folder}: holds quantized weights ({method_of(quantized)}), which cannot be trained; use the bf16"
                " version of the model, or load it with transformers, dequantize it and save it"
            )
        self.folder, self.model = folder, skeleton
        self.tensors = {name: tensor for path in weight_paths(folder) for name, tensor in stored_tensors(path)}
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        self.incoming = incoming(skeleton, self.tensors.keys(), shapes)
        self.tied = tied_names(skeleton)
        self.used: set[str] = set()
        self.converted: tuple[str, Mapping[str, torch.Tensor]] = ("", {})

    def part(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        held = self.held_name(name)
        values = self.read(held, shape, start, stop)
        for other in self.same_as(held):
            if not torch.equal(values, self.read(other, shape, start, stop)):
                raise CheckpointError(
                    f"{self.folder}: the configuration ties {other} to {held}, but the files hold two different"
                    " tensors; set tie_word_embeddings to false in config.json"
                )
        return values

    def held_name(self, name: str) -> str:
        """Return the model's name under which the files hold a tensor: of tied names, they may hold any one."""
        names = [name, *(one for pair in self.tied.items() if name in pair for one in pair)]
        found = next((one for one in names if one in self.incoming.sources), None)
        if found is None:
            raise CheckpointError(
                f"{self.folder}: has no weights for the parameter {name}, which its config.json asks for; fetch the"
                " folder again"
            )
        return found

    def same_as(self, name: str) -> list[str]:
        """Return the names tied to this one that the files hold too."""
        tied = {one for pair in self.tied.items() if name in pair for one in pair} - {name}
        return sorted(tied & self.incoming.sources.keys())

    def read(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        """Return elements start..stop of a tensor that the files hold under this name of the model's."""
        source = self.incoming.sources[name]
        if isinstance(source, Conversion):
            self.used.update(stored for names in source.inputs.values() for stored in names)
            if source.is_by_expert:
                return self.experts(source, name, shape, start, stop)
            return self.convert(source, name, shape).reshape(-1)[start:stop]
        self.used.add(source)
        self.check_shape(name, self.tensors[source].shape, shape)
        return self.stored(source).flat(start, stop)

    def experts(self, conversion: Conversion, name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        """Return elements start..stop of a fused tensor of experts, reading only the experts that they touch."""
        for names in conversion.inputs.values():
            self.check_shape(name, (len(names), *shape[1:]), shape)
        if start == stop:
            return torch.empty(0)
        expert = math.prod(shape[1:])
        first, last = start // expert, -(-stop // expert)
        chosen = {
            pattern: [self.stored(stored).whole() for stored in names[first:last]]
            for pattern, names in conversion.inputs.items()
        }
        made = conversion.run(self.model, chosen)[name]
        self.check_shape(name, (shape[0], *made.shape[1:]), shape)
        return made.reshape(-1)[start - first * expert : stop - first * expert]

    def convert(self, conversion: Conversion, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a converted tensor, whole; the outputs of the last conversion are kept for its other tensors."""
        if self.converted[0] != conversion.key:
            inputs = {
                pattern: [self.stored(stored).whole() for stored in names]
                for pattern, names in conversion.inputs.items()
            }
            self.converted = (conversion.key, conversion.run(self.model, inputs))
        made = self.converted[1][name]
        self.check_shape(name, tuple(made.shape), shape)
        return made

    def stored(self, stored_name: str) -> StoredTensor:
        tensor = self.tensors[stored_name]
        if tensor.kind not in DTYPES:
            raise CheckpointError(
                f"{self.folder}: {stored_name} has type {tensor.kind}; accepted: {', '.join(DTYPES)}. Quantized weights"
                " cannot be trained; use the bf16 version of the model"
            )
        return tensor

    def check_shape(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise CheckpointError(
                f"{self.folder}: {name} has shape {found}, but config.json asks for {expected}; fetch the folder again"
            )

    def finish(self, elsewhere: Collection[str]) -> None:
        for name in elsewhere:
            for held in (self.held_name(name), *self.same_as(self.held_name(name))):
                source = self.incoming.sources[held]
                names = (
                    [source] if isinstance(source, str) else [one for many in source.inputs.values() for one in many]
                )
                self.used.update(names)
        ignorable = self.incoming.unplaced.keys() - not_ignorable(self.model, self.incoming.unplaced)
        unused = sorted(self.tensors.keys() - self.used - ignorable)
        if unused:
            names = unused[:3] + ["..."] * (len(unused) > 3)
            raise CheckpointError(
                f"{self.folder}: the model has no parameter for {len(unused)} of the stored tensors: {', '.join(names)}"
                "; check that config.json and the weights belong together"
            )


def method_of(quantization: Any) -> str:
    values = quantization if isinstance(quantization, dict) else vars(quantization)
    return str(values.get("quant_method", "unknown method"))


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Return the second names of tied parameters, such as a head's tied to the embedding, each with the first name."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})
