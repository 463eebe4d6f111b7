"""The buffers of a model: the persistent ones, stored with its weights, and those computed when it is built."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from training.models.initial_weights import Weights
from training.models.name_conversions import stays_fp32


def persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that files store with the parameters, such as the bias that balances a router's experts."""
    stored = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in stored}


def stored_buffers(skeleton: PreTrainedModel, weights: Weights, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the persistent buffers, in the precision that transformers gives them in a model of `dtype`.

    A buffer that transformers keeps in fp32, such as the bias of a router, stays in fp32. A parameter that it keeps in
    fp32 does not: ZeRO trains a model in one precision, so it has fp32 master weights like any other and is of `dtype`
    in forward and backward.
    """
    buffers = {}
    for name, outline in persistent_buffers(skeleton).items():
        value = weights.part(name, tuple(outline.shape), 0, outline.numel()).reshape(outline.shape)
        if outline.is_floating_point():
            value = value.to(torch.float32 if stays_fp32(skeleton, name, dtype) else dtype)
        buffers[name] = value.clone()
    return buffers


def made_buffers(skeleton: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the buffers that no file stores, such as rotary frequencies, in transformers' precision.

    As in from_pretrained, which also starts from a model on the meta device, the model's own initialization computes
    them. It may fill the buffers of a module's children, so all are allocated before the first module is initialized.
    """
    stored = persistent_buffers(skeleton).keys()
    outlines = {name: buffer for name, buffer in skeleton.named_buffers() if name not in stored}
    made = {name: torch.empty_like(outline, device="cpu") for name, outline in outlines.items()}
    put_buffers(skeleton, made)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for name, module in reversed(list(skeleton.named_modules())):
            owner_of(skeleton, name)._init_weights(module)  # has no effect on parameters, which are on the meta device
    put_buffers(skeleton, outlines)
    return made


def put_buffers(model: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    """Replace buffers of a model by name; unlike assignment, this also replaces meta tensors by real ones."""
    for name, value in buffers.items():
        owner, _, own_name = name.rpartition(".")
        model.get_submodule(owner)._buffers[own_name] = value


def owner_of(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Return the innermost sub-model that contains a module: in a composite model, each initializes its own way."""
    while name:
        module = model.get_submodule(name)
        if isinstance(module, PreTrainedModel):
            return module
        name = name.rpartition(".")[0]
    return model
