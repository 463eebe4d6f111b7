"""Initial weights of a new model, by its own initialization, one decoder layer at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cluster.errors import CheckpointError
from training.models.buffers import owner_of, persistent_buffers


class NewWeights:
    """Random weights by the model's own initialization, the same for every world size.

    The decoder layers, and each module around them, are initialized one after the other on the CPU, each with its own
    seed. A model constructed under ZeRO would keep torch's default initialization instead: its first loss was 248,
    where ln(vocabulary size) = 8.3 is right.
    """

    def __init__(self, skeleton: PreTrainedModel, seed: int) -> None:
        self.model = skeleton
        self.seed = seed
        self.layers = layer_names(skeleton)
        self.units = units(skeleton, self.layers)
        self.made: tuple[str | None, Mapping[str, torch.Tensor]] = (None, {})

    def part(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        unit = self.units[name]
        if self.made[0] != unit:
            self.made = (unit, self.make(unit))
        return self.made[1][name].reshape(-1)[start:stop]

    def make(self, unit: str) -> Mapping[str, torch.Tensor]:
        """Initialize a unit's tensors: children first, then the unit itself, as transformers does for a whole model."""
        module = self.model.get_submodule(unit)
        whole = unit in self.layers
        module.to_empty(device="cpu", recurse=whole)
        digest = hashlib.sha256(f"{self.seed}/{unit}".encode()).digest()
        prefix = f"{unit}." if unit else ""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int.from_bytes(digest[:8], "little"))
            for value in own_tensors(module, whole).values():
                if value.is_floating_point():
                    value.fill_(math.nan)
            for name, part in reversed(list(module.named_modules())) if whole else [("", module)]:
                owner_of(self.model, f"{prefix}{name}".rstrip("."))._init_weights(part)
        made = {prefix + name: value.detach() for name, value in own_tensors(module, whole).items()}
        values = {name: value for name, value in made.items() if name in self.units}
        if whole:
            module.to("meta")
        else:
            module._apply(lambda tensor: torch.empty_like(tensor, device="meta"), recurse=False)
        untouched = [name for name, value in values.items() if bool(value.isnan().any())]
        if untouched:
            raise CheckpointError(
                f"model.new: transformers does not initialize {', '.join(untouched[:3])}; choose another architecture,"
                " or start from a folder with weights (model.path)"
            )
        return values

    def finish(self, elsewhere: Collection[str]) -> None:
        """Do nothing: no stored tensor can be left over."""


def own_tensors(module: nn.Module, whole: bool) -> dict[str, torch.Tensor]:
    """Return a module's parameters and buffers by name; with `whole`, those of its children too."""
    return {**dict(module.named_parameters(recurse=whole)), **dict(module.named_buffers(recurse=whole))}


def layer_names(model: nn.Module) -> list[str]:
    """Return the names of the decoder layers: the modules that transformers never splits across devices."""
    classes: Any = getattr(model, "_no_split_modules", None) or []
    return [name for name, module in model.named_modules() if type(module).__name__ in classes]


def units(model: nn.Module, layers: list[str]) -> dict[str, str]:
    """Return the module that each stored tensor is initialized with: its decoder layer, or the module that owns it."""
    names = [*dict(model.named_parameters()), *persistent_buffers(model)]
    return {
        name: next((layer for layer in layers if name.startswith(layer + ".")), name.rpartition(".")[0])
        for name in names
    }
