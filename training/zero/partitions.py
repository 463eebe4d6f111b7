"""A rank's share of a model: what a checkpoint keeps of each trained parameter, whatever ZeRO stage holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from training.models.initial_weights import Weights


@dataclass(frozen=True, kw_only=True)
class Slot:
    """This rank's span start..stop of one flattened parameter of `numel` elements; it may be empty."""

    name: str
    shape: tuple[int, ...]
    numel: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Partition(Slot):
    """A slot with what is in it. `values` are fp32 views [stop - start], one of each of optimizer_state.KINDS.

    They are valid until the next partition is asked for.
    """

    values: dict[str, torch.Tensor]


class Sharding(Protocol):
    """How a ZeRO optimizer deals a model's trained parameters to ranks. All methods but layout() are collective."""

    def layout(self) -> list[Slot]:
        """Return this rank's slot of every trained parameter, in the model's order; no value is touched."""
        ...

    def parts(self, writing: bool) -> Iterator[Partition]:
        """Yield the slots with their values, in any order; with `writing`, what is put into the views is kept."""
        ...

    def fill_frozen(self, weights: Weights) -> None:
        """Fill the parameters that are not trained; they have no master weights."""
        ...

    def set_step(self, step: int) -> None:
        """Set Adam's step counter for every parameter: bias correction depends on it."""
        ...

    def refresh_weights(self) -> None:
        """Make the weights of forward and backward follow the master weights, or the old ones would train on."""
        ...

    def gradient_norms(self) -> torch.Tensor:
        """Return the norms of the gradient's groups [groups], before the step that applies it; negative: not finite."""
        ...

    def knowing_norms(self, norms: torch.Tensor) -> AbstractContextManager[None]:
        """Make a step in this context take these norms [groups] for its gradients', which it would compute again."""
        ...

    def refusing_gradients(self) -> AbstractContextManager[None]:
        """Make a step in this context change nothing: DeepSpeed refuses, and clears, gradients with no finite norm."""
        ...


def frozen_parameters(module: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Return the parameters that are not trained, in the model's order."""
    return [(name, parameter) for name, parameter in module.named_parameters() if not parameter.requires_grad]
