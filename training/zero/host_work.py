"""Less work on the host in each step of ZeRO-3: what DeepSpeed repeats there without need is done once.

Parameters below stage3_param_persistence_threshold are "persistent": whole on every rank. DeepSpeed 0.19 still frees
each of them before an update, gathers each with a collective of its own afterwards, and visits all of them whenever
their module is entered or left, for which it lists the parameters of that module again. Here they stay where they are,
are gathered together after an update, and are no longer visited; the parameters of a module are listed once. The same
bytes are copied to the same places, so the bits of a run do not change.

What is replaced is private to DeepSpeed. A version that is not among TESTED keeps its own way, and a message says so.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from training.zero.gradient_work import GradientParts, reduce_scattered
from training.zero.required_names import TESTED, installed

LOGGER = logging.getLogger(__name__)
TRIED_ON = {"cpu"}
"""Devices on which the bits were compared with DeepSpeed's own way. On a GPU its streams have to be waited for in the
right order, and a mistake there would be silent: tests/gpu/test_host_work.py has to compare them on two."""
ITER_PARAMS = deepspeed.runtime.zero.partitioned_param_coordinator.iter_params
LISTED = "_listed_partitioned"  # on each module, by `recurse`: its parameters that are not persistent


class PersistentParameters:
    """The parameters that are whole on every rank; `are_kept` says that they are kept so during an update."""

    def __init__(self, module: torch.nn.Module, optimizer: Any, *, are_kept: bool) -> None:
        self.parameters: list[Any] = optimizer.persistent_parameters
        self.are_kept = are_kept
        if are_kept:
            kinds = groupby(sorted(self.parameters, key=kind_of), key=kind_of)
            self.gathers = [Together(list(some)) for _, some in kinds]
            for part in module.modules():
                part.__dict__[LISTED] = {}
            coordinator = optimizer.parameter_offload.get_param_coordinator()
            deepspeed.runtime.zero.partitioned_param_coordinator.iter_params = partitioned_parameters
            optimizer._partition_all_parameters = lambda: coordinator.release_and_reset_all(module)  # hides the method
            optimizer.persistent_parameters = []  # of which DeepSpeed would gather each by itself after an update
            self.gather()

    def gather(self) -> None:
        """Make all of them follow the ranks' partitions. Collective."""
        if self.are_kept:
            gather_each(self.gathers)
        elif self.parameters:
            first = self.parameters[0]
            first.partition(self.parameters)
            first.all_gather(self.parameters)

    def gather_updated(self) -> None:
        """Make them follow an update, if DeepSpeed has not done it: those that are trained. Collective."""
        if self.are_kept:
            gather_each([together for together in self.gathers if together.parameters[0].requires_grad])


def kind_of(parameter: Any) -> str:
    """Return what parameters have in common that are gathered together; it sorts alike on every rank."""
    return f"{parameter.ds_tensor.dtype} {parameter.requires_grad}"


def gather_each(gathers: Sequence[Together]) -> None:
    """Gather some groups of parameters. Collective."""
    for together in gathers:
        together.gather()
    accelerator = deepspeed.accelerator.get_accelerator()
    if not accelerator.resolves_data_dependency():
        accelerator.synchronize()  # DeepSpeed gathers the next parameters on a stream that waits for no other


class Together:
    """Parameters of one dtype that one collective gathers, each into memory of its own that it keeps."""

    def __init__(self, parameters: Sequence[Any]) -> None:
        self.parameters = parameters
        self.places: list[torch.Tensor] = []
        """The memory of each parameter, [ranks, its elements on a rank]: the last of them may be padding."""

    @torch.no_grad()
    def gather(self) -> None:
        """Fill the parameters from the partitions of all ranks. Collective."""
        ranks = dist.get_world_size(self.parameters[0].ds_process_group)
        if ranks == 1:
            for parameter in self.parameters:
                set_whole(parameter, parameter.ds_tensor.data)
            return
        device = torch.device(deepspeed.accelerator.get_accelerator().current_device_name())
        own = torch.cat([parameter.ds_tensor.to(device) for parameter in self.parameters])
        whole = own.new_empty(ranks * own.numel())
        dist.all_gather_into_tensor(whole, own, group=self.parameters[0].ds_process_group)
        if not self.are_in_place():
            self.take_place(own, ranks)
        sizes = [parameter.ds_tensor.numel() for parameter in self.parameters]
        torch._foreach_copy_(self.places, list(torch.split_with_sizes(whole.view(ranks, -1), sizes, dim=1)))

    def are_in_place(self) -> bool:
        """Return whether every parameter is whole, in its place: it is not if DeepSpeed has freed it meanwhile."""
        return len(self.places) == len(self.parameters) and all(
            parameter.data_ptr() == place.data_ptr() and parameter.numel() == parameter.ds_numel
            for parameter, place in zip(self.parameters, self.places, strict=True)
        )

    def take_place(self, like: torch.Tensor, ranks: int) -> None:
        self.places = [like.new_empty(ranks, parameter.ds_tensor.numel()) for parameter in self.parameters]
        for parameter, place in zip(self.parameters, self.places, strict=True):
            set_whole(parameter, place.view(-1)[: parameter.ds_numel])


def set_whole(parameter: Any, values: torch.Tensor) -> None:
    parameter.data = values.view(parameter.ds_shape)
    parameter.ds_status = deepspeed.runtime.zero.partition_parameters.ZeroParamStatus.AVAILABLE


def can_replace(module: torch.nn.Module) -> bool:
    """Return whether DeepSpeed's own way can be replaced, and tell it if not.

    It cannot with an untested version or on an untried device, nor where ZeRO++ keeps other copies of parameters than
    their partitions.
    """
    if installed() not in TESTED:
        reason = f"DeepSpeed {installed()} was not tested; tested: {', '.join(TESTED)}"
    elif (device := deepspeed.accelerator.get_accelerator().device_name()) not in TRIED_ON:
        reason = f"the replacement was not tried on {device}"
    elif any(has_other_copies(parameter) for parameter in module.parameters()):
        reason = "ZeRO++ keeps other copies of the parameters"
    elif len({id(parameter.ds_process_group) for parameter in module.parameters()}) > 1:  # type: ignore[attr-defined]
        reason = "parameters are dealt to different groups of ranks"
    else:
        return True
    LOGGER.info("a step takes more of the host, as DeepSpeed does it by itself: %s", reason)
    return False


def remember_signatures(module: torch.nn.Module) -> None:
    """Keep the signatures of DeepSpeed's autograd functions, two a module, which torch works out at each call."""
    for part in module.modules():
        for name in ("pre_bwd_fn", "post_bwd_fn"):
            function = part.__dict__.get(name)
            if function is not None:
                function.forward.__signature__ = inspect.signature(function.forward)


def replace_gradient_work(optimizer: Any) -> None:
    """Reduce and keep gradients by operations on lists."""
    deepspeed.runtime.zero.stage3.reduce_scatter_coalesced = reduce_scattered
    if not optimizer.offload_optimizer:
        optimizer.partition_grads = GradientParts(optimizer).add  # hides the method


def has_other_copies(parameter: Any) -> bool:
    """Return whether a parameter is quantized, or has a second partition for the ranks of its host (ZeRO++)."""
    return hasattr(parameter.ds_tensor, "ds_quant_scale") or parameter.ds_zero_param_process_group is not None


def partitioned_parameters(module: torch.nn.Module, recurse: bool = False) -> Iterable[torch.nn.Parameter]:
    """Return a module's parameters that are gathered and freed as they are used: replaces DeepSpeed's iter_params.

    A module's own parameters are those it had at the first call; parameters of others that it uses may still be added.
    A module of another model in this process, whose persistent parameters are left to DeepSpeed, has all of them.
    """
    listed: dict[bool, tuple[torch.nn.Parameter, ...]] | None = module.__dict__.get(LISTED)
    if listed is None:
        return ITER_PARAMS(module, recurse)  # type: ignore[no-any-return]
    if recurse not in listed:
        listed[recurse] = tuple(partitioned(module.parameters(recurse=recurse)))
    others: dict[int, Any] = module._external_params  # type: ignore[assignment]
    return chain(listed[recurse], partitioned(others.values())) if others else listed[recurse]


def partitioned(parameters: Iterable[Any]) -> Iterator[Any]:
    """Yield the parameters that are not persistent."""
    return (parameter for parameter in parameters if not parameter.ds_persist)
