"""Whether the precision that a run computes in is a slow one here."""

from __future__ import annotations

from cluster.environment import gpu_count
from cluster.machine import has_bf16
from training.config import TrainConfig


def slow_precision_warning(train: TrainConfig) -> str | None:
    """Return what to set if training on this machine would be slow for its precision; None if it would not."""
    if train.precision != "bf16" or gpu_count() > 0 or has_bf16():
        return None
    return (
        "train.precision: bf16 is many times slower than fp32 on this CPU, which has no instructions for it (AVX-512,"
        " or bf16 on Arm): to train a new run here, set fp32"
    )
