"""The buffers of a model: those that belong to its weights, and those that are made with it and are in no file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from training.models.initial_weights import Weights
from training.models.name_conversions import stays_fp32


def persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that files hold beside the parameters, such as the balance of a router's experts."""
    stored = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in stored}


def stored_buffers(skeleton: PreTrainedModel, weights: Weights, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the buffers that files hold, in the precision that transformers gives them in a model of `dtype`.

    What it keeps in fp32 stays so here where it is a buffer, such as the balance of a router's experts. A parameter
    that it would keep so has fp32 master weights like all others, and is of `dtype` in forward and backward: ZeRO
    trains a model in one precision.
    """
    buffers = {}
    for name, outline in persistent_buffers(skeleton).items():
        value = weights.part(name, tuple(outline.shape), 0, outline.numel()).reshape(outline.shape)
        if outline.is_floating_point():
            value = value.to(torch.float32 if stays_fp32(skeleton, name, dtype) else dtype)
        buffers[name] = value.clone()
    return buffers


def made_buffers(skeleton: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the buffers that no file holds, such as the frequencies of rotary positions, in transformers' precision.

    Like from_pretrained, which also begins with a model without memory, this asks the model's rule of initialization.
    A module's rule may fill the buffers of the modules in it: all are there before the first rule is asked.
    """
    stored = persistent_buffers(skeleton).keys()
    outlines = {name: buffer for name, buffer in skeleton.named_buffers() if name not in stored}
    made = {name: torch.empty_like(outline, device="cpu") for name, outline in outlines.items()}
    put_buffers(skeleton, made)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for name, module in reversed(list(skeleton.named_modules())):
            owner_of(skeleton, name)._init_weights(module)  # parameters have no memory: nothing happens to them
    put_buffers(skeleton, outlines)
    return made


def put_buffers(model: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    for name, value in buffers.items():
        owner, _, own_name = name.rpartition(".")
        model.get_submodule(owner)._buffers[own_name] = value


def owner_of(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Return the sub-model that a module is or belongs to: of a model of several, each has a rule of its own."""
    while name:
        module = model.get_submodule(name)
        if isinstance(module, PreTrainedModel):
            return module
        name = name.rpartition(".")[0]
    return model
