"""A rank's state in the memory of its host: copied in one go, then written while training goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from training.parts import KINDS, Part
from training.rank_files import ITEM_BYTES, Stretch

if TYPE_CHECKING:
    from training.engine import Engine

log = logging.getLogger(__name__)


class Staging:
    """One flat fp32 buffer as long as the rank's state, its pages already there."""

    def __init__(self, numel: int, device: torch.device) -> None:
        self.buffer = torch.empty(numel, dtype=torch.float32, pin_memory=device.type == "cuda")
        self.buffer.zero_()  # touches the pages
        self.device = device

    @classmethod
    def within(cls, budget_bytes: int, engine: Engine) -> Staging | None:
        """Return a buffer for the engine's state, or None if it would take more memory than allowed."""
        numel = len(KINDS) * sum(slot.stop - slot.start for slot in engine.layout())
        if numel * ITEM_BYTES > budget_bytes:
            log.warning(
                "a copy of this rank's state takes %.2f GB, allowed are %.2f GB: training waits while it is written;"
                " train.save_copy_gb sets what a host may give",
                numel * ITEM_BYTES / 1e9,
                budget_bytes / 1e9,
            )
            return None
        return cls(numel, engine.device)

    def copy(self, engine: Engine) -> list[Stretch]:
        """Copy the rank's state; return what lies in the buffer, in its order. Training may go on."""
        place, copied = 0, []
        for part in engine.parts():
            for tensor in part.values.values():
                self.buffer[place : place + tensor.numel()].copy_(tensor, non_blocking=True)
                place += tensor.numel()
            copied += stretches_of_part(part)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return copied


def stretches_of(engine: Engine) -> list[Stretch]:
    """Return what `streamed` yields, in its order."""
    return [stretch for part in engine.parts() for stretch in stretches_of_part(part)]


def stretches_of_part(part: Part) -> list[Stretch]:
    numel = part.stop - part.start
    return [Stretch(key=f"{kind}.{part.name}", start=part.start, numel=numel) for kind in part.values if numel]


def streamed(engine: Engine) -> Iterator[torch.Tensor]:
    """Yield the rank's state, one tensor in the host's memory at a time."""
    for part in engine.parts():
        for tensor in part.values.values():
            yield tensor.detach().to("cpu").contiguous()
