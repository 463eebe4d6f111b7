"""The adapter to ZeRO-3: a rank's partition of every parameter and of its moments.

ZeRO-3 cuts each flattened parameter of n elements into ceil(n / world) elements a rank, the last partition padded.
What is used of DeepSpeed here beyond its public interface is STAGE_3 of training/zero/required_names.py;
tests/training/zero/test_zero3_contract.py holds a new DeepSpeed to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch

from training.models.initial_weights import Weights
from training.optimizer_state import MASTER, MOMENTS
from training.zero import gradient_work
from training.zero.adamw import STEP, zero_state
from training.zero.host_work import PersistentParameters, can_replace, remember_signatures, replace_gradient_work
from training.zero.partitions import Partition, Slot, frozen_parameters

IN_MEMORY = -1


class Stage3:
    """The sharding of ZeRO-3, its states on the device, in the host's memory or in files."""

    def __init__(self, module: torch.nn.Module, optimizer: Any, rank: int, world_size: int) -> None:
        """Create the moments, so that a checkpoint can fill them before the first step."""
        self.module, self.optimizer = module, optimizer
        self.rank, self.world_size = rank, world_size
        self.trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.is_replaced = can_replace(module)
        self.persistent = PersistentParameters(module, optimizer, are_kept=self.is_replaced)
        if self.is_replaced:
            remember_signatures(module)
            replace_gradient_work(optimizer)
        for sub_group, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            with self.swapped_in(sub_group, writing=True):
                numel = int(optimizer.fp16_partitioned_groups_flat_numel[sub_group])
                optimizer.optimizer.state[flat] = zero_state(flat, numel)

    def layout(self) -> list[Slot]:
        return [self.slot(name, parameter) for name, parameter in self.trained.items()]

    def slot(self, name: str, parameter: Any) -> Slot:
        numel = int(parameter.ds_numel)
        size = -(-numel // self.world_size)
        start, stop = min(self.rank * size, numel), min((self.rank + 1) * size, numel)
        return Slot(name=name, shape=tuple(parameter.ds_shape), numel=numel, start=start, stop=stop)

    def parts(self, writing: bool) -> Iterator[Partition]:
        """Yield what is in memory in the model's order, then what is in files, each file read once."""
        for home, slots in groupby(sorted(self.layout(), key=self.home), key=self.home):
            with self.swapped_in(home, writing):
                for slot in slots:
                    yield Partition(**vars(slot), values=self.values(slot))

    def values(self, slot: Slot) -> dict[str, torch.Tensor]:
        sub_group, offset = self.position(slot)
        flat = self.optimizer.fp32_partitioned_groups_flat[sub_group]
        state = self.optimizer.optimizer.state[flat]
        tensors = {MASTER: flat.detach(), **{moment: state[moment] for moment in MOMENTS}}
        return {key: tensor.narrow(0, offset, slot.stop - slot.start) for key, tensor in tensors.items()}

    def position(self, slot: Slot) -> tuple[int, int]:
        """Return the sub-group that a slot lies in, and where."""
        sub_group, offset, _ = self.optimizer.grad_position[self.optimizer.get_param_id(self.trained[slot.name])]
        return sub_group, offset

    def home(self, slot: Slot) -> int:
        """Return the sub-group that has to be read from files for a slot, or IN_MEMORY."""
        sub_group, _ = self.position(slot)
        return sub_group if self.optimizer._swappable_optimizer_subgroup(sub_group) else IN_MEMORY

    @contextmanager
    def swapped_in(self, sub_group: int, writing: bool) -> Iterator[None]:
        """Hold a sub-group's master weights and state in memory; afterwards write them back, or forget them."""
        if sub_group == IN_MEMORY or not self.optimizer._swappable_optimizer_subgroup(sub_group):
            yield
            return
        self.optimizer._optimizer_states_and_gradient_swap_in(sub_group)
        try:
            yield
        finally:
            if writing:
                self.optimizer._optimizer_states_and_gradient_swap_out(sub_group)
            else:
                self.optimizer._release_swap_buffers(sub_group)

    def fill_frozen(self, weights: Weights) -> None:
        for name, parameter in frozen_parameters(self.module):
            slot = self.slot(name, parameter)
            span = weights.part(name, slot.shape, slot.start, slot.stop)
            ds_tensor: Any = parameter.ds_tensor  # type: ignore[attr-defined]
            ds_tensor.data.narrow(0, 0, slot.stop - slot.start).copy_(span)
        self.forget_copies()
        self.persistent.gather()

    def set_step(self, step: int) -> None:
        for flat in self.optimizer.fp32_partitioned_groups_flat:
            self.optimizer.optimizer.state[flat][STEP].fill_(step)

    def refresh_weights(self) -> None:
        for sub_group in range(len(self.optimizer.fp32_partitioned_groups_flat)):
            with self.swapped_in(sub_group, writing=False):
                self.optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)
        self.forget_copies()
        self.persistent.gather()

    def forget_copies(self) -> None:
        """Drop the copies of the weights that hpZ keeps on every node: DeepSpeed does so only after its own step."""
        for parameter in self.module.parameters():
            parameter.ds_secondary_tensor = None  # type: ignore[attr-defined]

    def gradient_norms(self) -> torch.Tensor:
        if self.is_replaced and not self.optimizer.offload_optimizer:
            return gradient_work.norms_of(self.optimizer)
        return torch.stack([torch.as_tensor(norm) for norm in self.optimizer._get_norm_groups()])

    @contextmanager
    def refusing_gradients(self) -> Iterator[None]:
        # The gradients themselves are left alone: what is written into their padding is never cleared.
        with self.hiding_norms(torch.tensor([math.inf])):
            yield

    @contextmanager
    def knowing_norms(self, norms: torch.Tensor) -> Iterator[None]:
        with self.hiding_norms(norms):
            yield
        self.persistent.gather_updated()

    @contextmanager
    def hiding_norms(self, norms: torch.Tensor) -> Iterator[None]:
        self.optimizer._get_norm_groups = lambda: list(norms.unbind())  # hides the method
        try:
            yield
        finally:
            del self.optimizer._get_norm_groups
