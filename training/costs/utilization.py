"""How much of its GPUs' peak a run uses while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.costs.gpus import peak_of
from training.costs.shapes import ModelShape
from training.costs.speed import Work, flops_of

NEEDED = ("useful_tokens_per_s", "context_tokens", "trained_tokens", "step_s")


@dataclass(frozen=True, kw_only=True)
class Utilization:
    """The model and what all its ranks could compute. `peak_flops` is None where no data sheet gives it for a rank."""

    shape: ModelShape
    peak_flops: float | None

    def mfu(self, line: Mapping[str, Any]) -> float | None:
        """Return the model FLOPs utilization of a step from its line of metrics; None if not known, or skipped.

        Useful operations alone count, forward and backward: neither padding nor what is computed again in backward;
        attention within documents, and the head on the tokens that are trained.
        """
        if self.peak_flops is None or "skipped" in line or any(name not in line for name in NEEDED):
            return None
        flops = flops_of(self.shape, Work(context=line["context_tokens"]))  # the head's are for a token that is trained
        useful = (flops.products + flops.attention) * line["useful_tokens_per_s"]
        return float((useful + flops.head * line["trained_tokens"] / line["step_s"]) / self.peak_flops)


def utilization_of(shape: ModelShape, device: str, ranks: int, precision: str) -> Utilization:
    """Return what is needed for the MFU of `ranks` devices of a name; the peaks are those of bf16."""
    peak = peak_of(device) if precision == "bf16" else None
    return Utilization(shape=shape, peak_flops=None if peak is None else peak * ranks)
