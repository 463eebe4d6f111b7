"""Activation checkpointing: backward computes activations again instead of keeping them (Chen 2016, arXiv 1604.06174).

`full` keeps the input of each decoder layer. `selective` also keeps what is slow to compute again, the outputs of
matrix products and of attention; norms, rotary positions, activation functions and sums are computed again.

transformers decides where: its layers checkpoint their `forward`, not their call. So the hooks with which ZeRO-3
gathers a layer's weights stay outside, provided that the layer is gathered as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from cluster.errors import ConfigError, TrainingError
from training.config import ActivationCheckpointing

KEPT = (  # outputs that `selective` keeps; a product of two activations, as in scores, is not among them
    "aten::mm",
    "aten::addmm",
    "aten::_grouped_mm",
    "aten::convolution",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
)
KEY = "train.activation_checkpointing"


@dataclass
class Checkpointed:
    """What calls a checkpointed part of a model. `calls` counts, so that a model that ignores it is noticed."""

    settings: dict[str, Any] = field(default_factory=dict)
    calls: int = 0

    def __call__(self, function: Callable[..., Any], *inputs: Any) -> Any:
        self.calls += 1
        return checkpoint(function, *inputs, use_reentrant=False, **self.settings)


def policy(context: Any, operator: Any, *inputs: Any, **settings: Any) -> CheckpointPolicy:
    """Return whether the output of an operator is kept: a policy of torch's selective checkpointing."""
    return policy_of(operator)


@cache  # it is asked at every operator of a layer
def policy_of(operator: Any) -> CheckpointPolicy:
    name = str(operator.name()).partition(".")[0]  # without the overload
    return CheckpointPolicy.MUST_SAVE if name in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def checkpoint_activations(
    model: PreTrainedModel, kind: ActivationCheckpointing, gathered: Collection[nn.Module] | None = None
) -> None:
    """Make a model compute activations again in backward; `none` changes nothing.

    `gathered` are the layers that ZeRO-3 gathers as a whole; None: it gathers nothing. Other layers gather while they
    compute, not always the same in backward as in forward, so `selective` keeps only their input. Raises ConfigError
    for a model that cannot do it.
    """
    if kind == "none":
        return
    has_new_name = hasattr(model, "activation_checkpointing_enable")  # transformers 6 has only this one
    enable = model.activation_checkpointing_enable if has_new_name else model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(f"{KEY}: {kind}: {error}; set none") from None
    selective = {"context_fn": partial(create_selective_checkpoint_contexts, policy)}
    found = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    layers = [module for module in found if isinstance(module, GradientCheckpointingLayer)]
    if kind == "selective" and not layers:
        raise ConfigError(f"{KEY}: selective: {type(model).__name__} checkpoints parts other than layers; set full")
    whole, partly = Checkpointed(), Checkpointed(selective)
    for module in found:
        is_partly = kind == "selective" and module in (layers if gathered is None else gathered)
        module._gradient_checkpointing_func = partly if is_partly else whole


def require_checkpointing(model: nn.Module, kind: ActivationCheckpointing) -> None:
    """Raise TrainingError if a forward pass in training did not compute through checkpoints as it was told to."""
    functions = {id(f): f for f in (getattr(m, "_gradient_checkpointing_func", None) for m in model.modules())}
    if kind != "none" and not any(isinstance(f, Checkpointed) and f.calls for f in functions.values()):
        raise TrainingError(
            f"{KEY}: {kind}: {type(model).__name__} keeps all activations in spite of it; set none and lower"
            " train.micro_batch_rows if the memory does not suffice"
        )
