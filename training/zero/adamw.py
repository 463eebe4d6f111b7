"""The optimizer: AdamW, what decays in it, and its state before the first step. See training/optimizer_state.py."""

from __future__ import annotations

from typing import Any

import torch

from training.config import TrainConfig
from training.optimizer_state import MOMENTS

STEP = "step"  # torch's name of the counter that Adam's bias correction depends on


def adamw(model: torch.nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a model's trained parameters."""
    return torch.optim.AdamW(
        parameter_groups(model, train.weight_decay),
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
        fused=True,
    )


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: matrices decay; norms, biases and other vectors do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if len(shape_of(parameter)) >= 2]
    vectors = [parameter for parameter in trained if len(shape_of(parameter)) < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def shape_of(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """Return a parameter's whole shape, also where ZeRO-3 keeps only this rank's partition of it here."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def zero_state(master: torch.Tensor, numel: int) -> dict[str, torch.Tensor]:
    """Return the state of a flat tensor before the first step, as torch would make it in that step."""
    moments = {moment: torch.zeros(numel, dtype=torch.float32, device=master.device) for moment in MOMENTS}
    return {STEP: torch.zeros((), dtype=torch.float32, device=master.device), **moments}
