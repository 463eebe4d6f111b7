"""Less work on the host for ZeRO-3's gradients: operations on lists of tensors instead of some for each parameter.

A model of 32 layers has 290 parameters. DeepSpeed 0.19 takes ten to twenty small operations for each of them, in every
step, to reduce its gradient over the ranks, to keep this rank's part and to compute its norm. What is here computes the
same numbers in the same order, so the bits of a run do not change, by operations that torch has for lists.

What is replaced is private to DeepSpeed: see training/zero/host_work.py, which decides whether it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812


@torch.no_grad()
def reduce_scattered(tensors: Sequence[torch.Tensor], group: Any = None) -> list[torch.Tensor]:
    """Return this rank's parts of the means of tensors over all ranks, flat: replaces reduce_scatter_coalesced.

    A tensor is cut into ceil(numel / ranks) elements for each rank, the last part being shorter or empty. Collective.
    """
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    sizes = [-(-tensor.numel() // ranks) for tensor in tensors]
    rows = [
        padded(tensor.reshape(-1), size * ranks).view(ranks, size) for tensor, size in zip(tensors, sizes, strict=True)
    ]
    whole = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)  # [ranks, elements]: what each rank is to have
    whole.div_(ranks)
    dist.reduce_scatter_tensor(whole[rank], whole.view(-1), group=group)
    parts = torch.split_with_sizes(whole[rank], sizes)
    lengths = [min(max(t.numel() - rank * size, 0), size) for t, size in zip(tensors, sizes, strict=True)]
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]


def padded(tensor: torch.Tensor, numel: int) -> torch.Tensor:
    return tensor if tensor.numel() == numel else F.pad(tensor, (0, numel - tensor.numel()))


class GradientParts:
    """This rank's parts of the gradients, summed over micro batches where DeepSpeed keeps them: on the device."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.views: dict[tuple[int, int], torch.Tensor] = {}

    @torch.no_grad()
    def add(self, parameters: Sequence[Any], parts: Sequence[torch.Tensor]) -> None:
        """Keep or add parts of gradients, and free the gradients: replaces the optimizer's partition_grads."""
        sums = [self.view(parameter, part.numel()) for parameter, part in zip(parameters, parts, strict=True)]
        if self.optimizer.micro_step_id == 0:
            torch._foreach_copy_(sums, list(parts))
        else:
            torch._foreach_add_(sums, list(parts))
        accelerator = deepspeed.accelerator.get_accelerator()
        for parameter in parameters:
            if not accelerator.is_synchronized_device() and parameter.grad is not None:
                parameter.grad.record_stream(accelerator.current_stream())
            parameter.grad = None

    def view(self, parameter: Any, numel: int) -> torch.Tensor:
        key = parameter.ds_id, numel
        if key not in self.views:
            parts = self.optimizer._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
            self.views[key] = parts[parameter.ds_id].narrow(0, 0, numel)
        return self.views[key]


@torch.no_grad()
def norms_of(optimizer: Any) -> torch.Tensor:
    """Return the norm of each sub-group's gradient [sub_groups] in fp64, -1 where it is not finite. Collective."""
    squares = [
        torch.stack(torch._foreach_norm(optimizer.averaged_gradients[group], 2.0, dtype=torch.float64)).pow(2.0).sum()
        for group in range(len(optimizer.fp16_groups))
    ]
    total = torch.stack(squares)
    dist.all_reduce(total)
    norms = total**0.5
    return torch.where(norms.isfinite(), norms, -1.0)
