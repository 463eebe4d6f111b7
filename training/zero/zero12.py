"""The adapter to ZeRO stages 1 and 2: a rank's partition of every parameter and of its moments.

The parameters of a group lie one after the other in one flat tensor, which is cut into as many equal partitions as
there are ranks: a rank's span of a parameter is any interval, and most often all of it or nothing. What is used of
DeepSpeed here beyond its public interface is STAGES_1_2 and STAGE_1_BF16 of training/zero/required_names.py;
tests/training/zero/test_shardings.py holds a new DeepSpeed to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import deepspeed
import torch

from training.models.initial_weights import Weights
from training.optimizer_state import MASTER, MOMENTS
from training.zero.adamw import STEP, zero_state
from training.zero.partitions import Partition, Slot, frozen_parameters
from training.zero.required_names import is_bf16_optimizer


@dataclass(frozen=True)
class Place:
    """Where a rank's span of a parameter lies: `offset` into this rank's master weights of a group."""

    slot: Slot
    master: torch.Tensor
    offset: int


class Stage12:
    """The sharding of ZeRO stages 1 and 2: the low-precision weights are whole on every rank, the states are not."""

    def __init__(self, module: torch.nn.Module, optimizer: Any, rank: int) -> None:
        """Create the moments, so that a checkpoint can fill them before the first step."""
        self.module, self.optimizer = module, optimizer
        self.masters = masters_of(optimizer)
        for master in self.masters:
            optimizer.optimizer.state[master] = zero_state(master, master.numel())
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        places = {place.slot.name: place for place in places_of(optimizer, names, rank)}
        self.places = [places[name] for name, p in module.named_parameters() if p.requires_grad]

    def layout(self) -> list[Slot]:
        return [place.slot for place in self.places]

    def parts(self, writing: bool) -> Iterator[Partition]:
        """Yield the partitions in the model's order, views of the states themselves: writing needs nothing more."""
        for place in self.places:
            state = self.optimizer.optimizer.state[place.master]
            tensors = {MASTER: place.master.detach(), **{moment: state[moment] for moment in MOMENTS}}
            numel = place.slot.stop - place.slot.start
            values = {key: tensor.narrow(0, place.offset, numel) for key, tensor in tensors.items()}
            yield Partition(**vars(place.slot), values=values)

    def fill_frozen(self, weights: Weights) -> None:
        for name, parameter in frozen_parameters(self.module):
            whole = weights.part(name, tuple(parameter.shape), 0, parameter.numel())
            parameter.data.copy_(whole.reshape(parameter.shape))

    def set_step(self, step: int) -> None:
        for master in self.masters:
            self.optimizer.optimizer.state[master][STEP].fill_(step)

    def refresh_weights(self) -> None:
        self.optimizer.update_lp_params()

    def gradient_norms(self) -> torch.Tensor:
        if is_bf16_optimizer(self.optimizer):
            gradients, _ = self.optimizer.get_grads_for_norm()
            norm = deepspeed.runtime.utils.get_global_norm_of_tensors(input_tensors=gradients)
        else:
            self.optimizer._wait_for_offload_copies()
            norm = self.optimizer.scaled_global_norm()
        return torch.as_tensor(norm).reshape(1)

    @contextmanager
    def refusing_gradients(self) -> Iterator[None]:
        with self.hiding(check_grad_overflow=True), self.knowing_norms(torch.tensor([math.inf])):
            try:
                yield
            finally:
                sums = getattr(self.optimizer, "averaged_gradients", {})
                sums.update(dict.fromkeys(sums))  # with offload they would stay, and be added to the next step's

    def knowing_norms(self, norms: torch.Tensor) -> AbstractContextManager[None]:
        """Make DeepSpeed take this norm [1]: the norm of a tensor that holds one alone is that norm, to the bit."""
        if is_bf16_optimizer(self.optimizer):
            gradients = self.optimizer.get_grads_for_norm
            return self.hiding(
                get_grads_for_norm=lambda for_clipping=False: gradients(True) if for_clipping else ([norms[0]], {})
            )
        return self.hiding(scaled_global_norm=lambda norm_type=2: norms[0])

    @contextmanager
    def hiding(self, **attributes: Any) -> Iterator[None]:
        """Give the optimizer attributes that hide those of its class; afterwards they are as they were."""
        before = {name: vars(self.optimizer)[name] for name in attributes if name in vars(self.optimizer)}
        vars(self.optimizer).update(attributes)
        try:
            yield
        finally:
            for name in attributes:
                delattr(self.optimizer, name)
            vars(self.optimizer).update(before)


def masters_of(optimizer: Any) -> list[torch.Tensor]:
    """Return this rank's flat master weights of each group."""
    if is_bf16_optimizer(optimizer):
        return list(optimizer.fp32_groups_flat_partition)
    return list(optimizer.single_partition_of_fp32_groups)


def group_members(optimizer: Any, group: int) -> list[tuple[torch.nn.Parameter, int]]:
    """Return a group's parameters, and where each begins in the group's flat tensor."""
    if is_bf16_optimizer(optimizer):
        parameters = optimizer.bf16_groups[group]
        return list(zip(parameters, accumulate((p.numel() for p in parameters), initial=0), strict=False))
    return list(zip(optimizer.round_robin_bit16_groups[group], optimizer.round_robin_bit16_offsets[group], strict=True))


def places_of(optimizer: Any, names: dict[int, str], rank: int) -> Iterator[Place]:
    """Yield where this rank's span of every parameter lies; an empty one, at its end, where the rank has none of it."""
    for group, master in enumerate(masters_of(optimizer)):
        first, last = rank * master.numel(), (rank + 1) * master.numel()
        for parameter, begin in group_members(optimizer, group):
            numel = parameter.numel()
            start, stop = (min(max(edge - begin, 0), numel) for edge in (first, last))
            slot = Slot(name=names[id(parameter)], shape=tuple(parameter.shape), numel=numel, start=start, stop=stop)
            yield Place(slot, master, min(max(begin - first, 0), master.numel()))
