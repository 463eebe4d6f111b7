"""The one adapter to DeepSpeed's ZeRO-3 internals: a rank's part of every parameter and of its moments.

ZeRO-3 cuts each flattened parameter of n elements into ceil(n / world) elements a rank, the last part padded. What is
used here beyond the public interface, and what tests/training/test_zero3.py holds a new DeepSpeed to:

    optimizer.grad_position[param_id] = (sub_group, offset, numel)    where a parameter's part lies
    optimizer.fp32_partitioned_groups_flat[sub_group]                 master weights, one flat tensor a sub-group
    optimizer.optimizer.state[flat]                                   the wrapped torch optimizer's state of it
    optimizer._reassign_or_swap_out_partitioned_parameters(sub_group) master weights to low-precision weights
    optimizer.persistent_parameters                                   small parameters that stay gathered
    optimizer._get_norm_groups()                                      norm of each sub-group's gradients; -1: not finite
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Part:
    """This rank's stretch start..stop of one flattened parameter of `numel` elements, without ZeRO's padding.

    `values` are views, fp32 [stop - start]: 'master', 'exp_avg', 'exp_avg_sq'. A part can be empty on the last ranks.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    start: int
    stop: int
    values: dict[str, torch.Tensor]


def create_state(optimizer: Any) -> None:
    """Create the moments before the first step, as torch would in it: zeros, with the step counter at 0."""
    for flat in optimizer.fp32_partitioned_groups_flat:
        optimizer.optimizer.state[flat] = {
            "step": torch.zeros((), dtype=torch.float32, device=flat.device),
            **{moment: torch.zeros_like(flat, requires_grad=False) for moment in MOMENTS},
        }


def local_parts(module: torch.nn.Module, optimizer: Any, rank: int, world_size: int) -> Iterator[Part]:
    """Yield this rank's part of every trained parameter, in the model's order."""
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        ds: Any = parameter
        numel = int(ds.ds_numel)
        size = -(-numel // world_size)
        start, stop = min(rank * size, numel), min((rank + 1) * size, numel)
        sub_group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
        flat = optimizer.fp32_partitioned_groups_flat[sub_group]
        state = optimizer.optimizer.state[flat]
        tensors = {"master": flat.detach(), **{moment: state[moment] for moment in MOMENTS}}
        values = {key: tensor.narrow(0, offset, stop - start) for key, tensor in tensors.items()}
        yield Part(name=name, shape=tuple(ds.ds_shape), numel=numel, start=start, stop=stop, values=values)


def set_step(optimizer: Any, step: int) -> None:
    """Set Adam's step counter in every sub-group: bias correction depends on it."""
    for flat in optimizer.fp32_partitioned_groups_flat:
        optimizer.optimizer.state[flat]["step"].fill_(step)


def refresh_weights(optimizer: Any) -> None:
    """Make the weights of forward and backward follow the master weights. Collective.

    Without this the weights from before a load would train on.
    """
    for sub_group in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)
    if optimizer.persistent_parameters:
        first = optimizer.persistent_parameters[0]
        first.partition(optimizer.persistent_parameters)
        first.all_gather(optimizer.persistent_parameters)


def gradient_norm(optimizer: Any) -> float:
    """Return the norm of the whole gradient before the step that applies it; inf if it is not finite. Collective."""
    norms = torch.stack([torch.as_tensor(norm, dtype=torch.float32) for norm in optimizer._get_norm_groups()])
    return float(torch.linalg.vector_norm(norms)) if bool((norms >= 0).all()) else math.inf


@contextmanager
def refusing_gradients(optimizer: Any) -> Iterator[None]:
    """Make a step in this context change nothing: DeepSpeed refuses gradients with no finite norm, and clears them.

    The gradients themselves are left alone: what was written into their padding would stay there for ever.
    """
    optimizer._get_norm_groups = lambda: [torch.tensor(math.inf)]  # hides the method
    try:
        yield
    finally:
        del optimizer._get_norm_groups
