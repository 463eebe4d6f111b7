"""Which weights are trained: all, all but those that `train.freeze` names, or LoRA adapters beside its layers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cluster.errors import ConfigError
from training.config import LoraConfig, TrainConfig
from training.models.initial_weights import Weights
from training.models.untrainable import NO_PEFT

BASE, LORA_A, LORA_B = ".base_layer.", ".lora_A.default.", ".lora_B.default."  # in peft's names of parameters


def choose_trained(model: PreTrainedModel, train: TrainConfig) -> None:
    """Add the LoRA adapters that `train.lora` asks for, and freeze everything that is not trained.

    Raises ConfigError if a pattern matches nothing, if nothing is left to train, or if peft is missing.
    """
    if train.lora is not None:
        add_lora(model, train.lora)
    freeze_other_modalities(model)
    freeze(model, train.freeze)


def freeze_other_modalities(model: PreTrainedModel) -> None:
    """Freeze what text does not pass through, such as a vision tower: without gradients, it would only decay."""
    text = text_parameters(model)
    for parameter in model.parameters():
        if id(parameter) not in text:
            parameter.requires_grad_(False)


def text_parameters(model: PreTrainedModel) -> set[int]:
    """Return the ids of the parameters that text passes through: all, except in a multimodal model."""
    is_text_only = model.config.get_text_config() is model.config
    modules = [model] if is_text_only else [model.get_decoder(), model.get_output_embeddings()]
    return {id(parameter) for module in modules if module is not None for parameter in module.parameters()}


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters whose names match one of the patterns (`*` matches dots too)."""
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        matched = [name for name in parameters if fnmatchcase(name, pattern)]
        if not matched:
            some = ", ".join(list(parameters)[:3])
            raise ConfigError(
                f"train.freeze: '{pattern}' matches no parameter of the model; their names are like {some} ..."
            )
        for name in matched:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("train.freeze: nothing is left to train; remove a pattern")


def add_lora(model: PreTrainedModel, lora: LoraConfig) -> None:
    """Add low-rank matrices A and B to the linear layers and freeze the rest (LoRA, Hu et al. 2021, arXiv 2106.09685).

    A layer's weight W is then named NAME.base_layer.weight, and the layer acts as W + alpha / rank * B A.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError(NO_PEFT) from None
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) if lora.target_modules else linear_layers(model),
        init_lora_weights=False,  # LoraWeights initializes them, the same for every world size
        task_type="CAUSAL_LM",
    )
    try:
        peft.inject_adapter_in_model(settings, model)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"train.lora.target_modules: {' '.join(str(error).split())[:300]}") from None
    check_adapters(model)


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear layers that get adapters by default (peft's "all-linear" includes routers too).

    All but the head, those that peft takes for fused experts, and those whose weight a fused kernel reads directly.
    """
    head, text, experts = model.get_output_embeddings(), text_parameters(model), names_of_experts(model)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    return [
        name
        for name, module in linear.items()
        if module is not head
        and id(module.weight) in text
        and name.rpartition(".")[2] not in experts
        and not is_read_by_kernel(model, name)
    ]


def names_of_experts(model: PreTrainedModel) -> Collection[str]:
    """Return the module names that peft takes for fused experts in models of this type, wherever they occur.

    Its tables are private: with a version that has none, adding an adapter to such a module is refused later.
    """
    try:
        from peft.utils import transformers_weight_conversion as tables
    except ImportError:
        return ()
    kinds = getattr(tables, "_MODEL_TO_CONVERSION_PATTERN", {})
    names: Collection[str] = getattr(tables, "_MOE_TARGET_MODULE_MAPPING", {}).get(
        kinds.get(model.config.model_type), ()
    )
    return names


def is_read_by_kernel(model: nn.Module, name: str) -> bool:
    """Return whether a Mamba layer's fused kernel reads the weight without calling the module, ignoring an adapter."""
    mixer, _, own = name.rpartition(".")
    is_mamba = {"A_log", "D"} <= dict(model.get_submodule(mixer).named_parameters(recurse=False)).keys()
    return own == "out_proj" and is_mamba


def check_adapters(model: nn.Module) -> None:
    """Raise ConfigError for adapters on anything but linear layers: an export could not merge them."""
    for name, module in model.named_modules():
        layer = getattr(module, "base_layer", None)
        if isinstance(layer, nn.Module) and not isinstance(layer, nn.Linear | Conv1D):
            raise ConfigError(
                f"train.lora.target_modules: {name} is of type {type(layer).__name__}; LoRA adapters are for linear"
                " layers: remove it, or train without lora and freeze what must not change (train.freeze)"
            )
        if isinstance(layer, nn.Module) and is_read_by_kernel(model, name):
            raise ConfigError(
                f"train.lora.target_modules: {name} is part of a Mamba layer, whose kernel reads its weight and ignores"
                " an adapter: remove it"
            )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not (name.endswith("weight") and (LORA_A in name or LORA_B in name)):
            raise ConfigError(
                f"train.lora.target_modules: {name} would be trained too, but is not an adapter of a linear layer; name"
                " linear layers only"
            )


class LoraWeights:
    """Initial weights of a model with LoRA adapters: A random, B zero, the rest from the model's own source."""

    def __init__(self, base: Weights, seed: int) -> None:
        self.base = base
        self.seed = seed

    def part(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        if LORA_A in name:
            return self.random(name, shape).reshape(-1)[start:stop]
        if LORA_B in name:
            return torch.zeros(stop - start)
        return self.base.part(base_name(name), shape, start, stop)

    def random(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return A, [rank, inputs], uniform within 1 / sqrt(inputs), as peft and torch initialize linear layers."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(shape[1])

    def finish(self, elsewhere: Collection[str]) -> None:
        self.base.finish([base_name(name) for name in elsewhere])


def base_name(name: str) -> str:
    """Return a parameter's name in the model without adapters."""
    return name.replace(BASE, ".")


def merged(
    weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, lora: LoraConfig, *, transposed: bool
) -> torch.Tensor:
    """Return W + alpha / rank * B A in fp32, the weight of a plain layer that acts as W and its adapter do together.

    A is [rank, inputs], B [outputs, rank], W [outputs, inputs]; with `transposed`, W is [inputs, outputs] as in GPT-2.
    """
    addition = (lora.alpha / lora.rank) * (lora_b.float() @ lora_a.float())
    return weight.float() + (addition.T if transposed else addition)


@dataclass(frozen=True, kw_only=True)
class PlainTensors:
    """The tensors of the plain model equivalent to a run's: trained weights, frozen ones, LoRA adapters merged.

    `skeleton` is that model on the meta device. `trained` are the names that a checkpoint holds; `read` returns
    one of them whole. `first` has the initial weights without adapters. `tied` maps second names of tensors that were
    tied when `first` was made to their first names; `skeleton` may have separate tensors for them.
    """

    skeleton: nn.Module
    trained: Collection[str]
    read: Callable[[str], torch.Tensor]
    first: Weights
    lora: LoraConfig | None
    tied: Mapping[str, str] = field(default_factory=dict)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the plain model, whole, by its name there."""
        if name in self.trained:
            return self.read(name)
        outline = self.skeleton.state_dict()[name]
        first = self.first.part(self.tied.get(name, name), tuple(outline.shape), 0, outline.numel())
        weight = first.reshape(outline.shape)
        lora_a, lora_b = adapter_names(name)
        if self.lora is None or lora_a not in self.trained:
            return weight
        transposed = isinstance(self.skeleton.get_submodule(name.rpartition(".")[0]), Conv1D)
        return merged(weight, self.read(lora_a), self.read(lora_b), self.lora, transposed=transposed)


def adapter_names(name: str) -> tuple[str, str]:
    """Return the names of A and B for a weight, whether or not it has an adapter."""
    layer, _, kind = name.rpartition(".")
    return f"{layer}{LORA_A}{kind}", f"{layer}{LORA_B}{kind}"
