"""First weights of a model made from nothing, by its own rule, one decoder layer at a time."""

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
    """Weights by the model's own rule of initialization, the same for every world size.

    The model's parts (its decoder layers, and what is around them) are made one after the other on the CPU, each from
    a seed of its own; what comes out of ZeRO's construction keeps torch's defaults, a first loss of 248 where
    ln(vocabulary) = 8.3 was due.
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
        """Make a part's tensors: children first, then the part itself, as transformers does for a whole model."""
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
                f"model.new: transformers has no rule for the first values of {', '.join(untouched[:3])}; take another"
                " architecture, or start from a folder with weights (model.path)"
            )
        return values

    def finish(self, elsewhere: Collection[str]) -> None:
        """Everything asked for was made; nothing can be left over."""


def own_tensors(module: nn.Module, whole: bool) -> dict[str, torch.Tensor]:
    """Return a module's parameters and buffers by name, with `whole` those of the modules in it too."""
    return {**dict(module.named_parameters(recurse=whole)), **dict(module.named_buffers(recurse=whole))}


def layer_names(model: nn.Module) -> list[str]:
    """Return the names of the modules that belong together: the decoder layers."""
    classes: Any = getattr(model, "_no_split_modules", None) or []
    return [name for name, module in model.named_modules() if type(module).__name__ in classes]


def units(model: nn.Module, layers: list[str]) -> dict[str, str]:
    """Return, for each stored tensor, the module it is made with: its decoder layer, or the module that owns it."""
    names = [*dict(model.named_parameters()), *persistent_buffers(model)]
    return {
        name: next((layer for layer in layers if name.startswith(layer + ".")), name.rpartition(".")[0])
        for name in names
    }
