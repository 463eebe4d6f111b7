"""A rank's state in the memory of its host: copied in one go, then written while training continues."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from training.checkpoints.shard_files import ITEM_BYTES, Span
from training.optimizer_state import KINDS
from training.zero.partitions import Slot

if TYPE_CHECKING:
    from training.zero.engine import ZeroEngine

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class KindState:
    """What a rank holds of one kind: spans, and tensors in the host's memory that together are these, in order."""

    kind: str
    spans: list[Span]
    data: Iterable[torch.Tensor]


class Staging:
    """One flat fp32 buffer as long as the rank's state, with its pages already allocated."""

    def __init__(self, numel: int, device: torch.device) -> None:
        self.buffer = torch.empty(len(KINDS) * numel, dtype=torch.float32, pin_memory=device.type == "cuda")
        self.buffer.zero_()  # touches the pages
        self.numel, self.device = numel, device

    @classmethod
    def within(cls, budget_bytes: int, engine: ZeroEngine) -> Staging | None:
        """Return a buffer for the engine's state, or None if it would take more memory than allowed."""
        numel = sum(slot.stop - slot.start for slot in engine.layout())
        size = len(KINDS) * numel * ITEM_BYTES
        if size > budget_bytes:
            log.warning(
                "a copy of this rank's state takes %.2f GB, %.2f GB are allowed: training waits while it is written;"
                " train.save_copy_gb sets how much memory of a host the copies may take",
                size / 1e9,
                budget_bytes / 1e9,
            )
            return None
        return cls(numel, engine.device)

    def copy(self, engine: ZeroEngine) -> list[KindState]:
        """Copy the rank's state; when this returns, training may change it."""
        regions = {kind: self.buffer[n * self.numel : (n + 1) * self.numel] for n, kind in enumerate(KINDS)}
        place = 0
        slots: list[Slot] = []
        for part in engine.parts():
            stop = place + part.stop - part.start
            for kind, tensor in part.values.items():
                if stop > place:
                    regions[kind][place:stop].copy_(tensor, non_blocking=True)
            slots.append(part)
            place = stop
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return [KindState(kind=kind, spans=spans(kind, slots), data=[region]) for kind, region in regions.items()]


def streamed(engine: ZeroEngine) -> list[KindState]:
    """Return the rank's state without a copy of it: one tensor at a time comes into the host's memory."""

    def tensors(kind: str) -> Iterator[torch.Tensor]:
        for part in engine.parts():
            yield part.values[kind].detach().to("cpu").contiguous()

    slots: list[Slot] = list(engine.parts())  # their order is that of the tensors
    return [KindState(kind=kind, spans=spans(kind, slots), data=tensors(kind)) for kind in KINDS]


def spans(kind: str, slots: Iterable[Slot]) -> list[Span]:
    """Return the slots that hold something, as a file of this kind names them."""
    filled = [slot for slot in slots if slot.stop > slot.start]
    return [Span(key=f"{kind}.{slot.name}", start=slot.start, numel=slot.stop - slot.start) for slot in filled]
