"""The model of a run as DeepSpeed wants it: without weights yet, in ZeRO-3 partitioned from the start."""

from __future__ import annotations

import ctypes
from copy import deepcopy
from typing import Any, cast

import deepspeed
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.initialization import no_init_weights

from training.config import TrainConfig
from training.models.new_weights import layer_names
from training.models.trainable import choose_trained
from training.step.activation_checkpointing import checkpoint_activations
from training.zero.ds_config import stage_of


def dtype_of(train: TrainConfig) -> torch.dtype:
    """Return the precision of the weights in forward and backward."""
    return torch.bfloat16 if train.precision == "bf16" else torch.float32


def build_model(config: PretrainedConfig, train: TrainConfig, ds_config: dict[str, Any]) -> torch.nn.Module:
    """Build the model; its weights are filled in later. In ZeRO-3 a parameter is partitioned as soon as it exists."""
    partitioned = stage_of(ds_config) == 3
    # the precision comes from ds_config: DeepSpeed 0.19 takes a dtype that is given for bf16 where there is no fp16
    with deepspeed.zero.Init(config_dict_or_path=ds_config, enabled=partitioned), no_init_weights():
        model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype_of(train))
    model.tie_weights()  # part of the initialization that was left out
    choose_trained(model, train)
    gathered = whole_layers(model, stage_of(ds_config)) if partitioned else None
    for layer in gathered or ():
        deepspeed.utils.set_z3_leaf_module(layer, True)  # one gather a layer, not one a matrix
    checkpoint_activations(model, train.activation_checkpointing, gathered)
    return cast(torch.nn.Module, model)


def whole_layers(model: torch.nn.Module, stage: int) -> list[torch.nn.Module]:
    """Return the decoder layers whose weights are there while they compute, without a hook in between."""
    return layers_after_trained(model) if stage == 3 else [model.get_submodule(name) for name in layer_names(model)]


def layers_after_trained(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the decoder layers with something trained before them.

    A leaf module whose input needs no gradient loses its weights in backward (DeepSpeed 0.19).
    """
    names = layer_names(model)
    first = next(number for number, parameter in enumerate(model.parameters()) if parameter.requires_grad)
    before = {name for number, (name, _) in enumerate(model.named_parameters()) if number <= first}
    return [model.get_submodule(name) for name in names if not any(n.startswith(f"{name}.") for n in before)]


def give_back_memory() -> None:
    """Give the memory back to the system that building the model has freed: glibc keeps blocks of less than 32 MB.

    Every parameter was whole for a moment before it was partitioned, and its part alone before all were put together.
    """
    ctypes.CDLL(None).malloc_trim(0)
