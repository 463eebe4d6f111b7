"""What of a model is trained: all, all but what `train.freeze` names, or low-rank additions to its layers."""

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

BASE, LORA_A, LORA_B = ".base_layer.", ".lora_A.default.", ".lora_B.default."  # in the names that peft gives


def choose_trained(model: PreTrainedModel, train: TrainConfig) -> None:
    """Add what `train.lora` asks for, and stop the gradients of everything that is not to be trained.

    Raises ConfigError if a pattern matches nothing, if nothing is left to train, or if peft is missing.
    """
    if train.lora is not None:
        add_lora(model, train.lora)
    freeze_other_modalities(model)
    freeze(model, train.freeze)


def freeze_other_modalities(model: PreTrainedModel) -> None:
    """Freeze what text does not pass through, such as the tower for images: without gradients it would only decay."""
    text = text_parameters(model)
    for parameter in model.parameters():
        if id(parameter) not in text:
            parameter.requires_grad_(False)


def text_parameters(model: PreTrainedModel) -> set[int]:
    """Return the ids of the parameters that text passes through: all, but in a model that takes images or sound too."""
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
                f"train.freeze: '{pattern}' matches no parameter of the model; they are called {some} ..."
            )
        for name in matched:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("train.freeze: nothing is left to train; remove a pattern")


def add_lora(model: PreTrainedModel, lora: LoraConfig) -> None:
    """Put low-rank matrices beside the linear layers and freeze the rest (Hu et al. 2021, arXiv 2106.09685).

    A layer's weight W is named NAME.base_layer.weight afterwards and acts as W + alpha / rank * B A.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError("train.lora: needs peft; install it with: pip install 'shardline[lora]'") from None
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) if lora.target_modules else linear_layers(model),
        init_lora_weights=False,  # LoraWeights makes them, the same for every world size
        task_type="CAUSAL_LM",
    )
    try:
        peft.inject_adapter_in_model(settings, model)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"train.lora.target_modules: {' '.join(str(error).split())[:300]}") from None
    check_additions(model)


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear layers that get additions by default (peft's word takes routers of experts too).

    All but the head, those that peft takes for experts by their name, and those whose weight a kernel reads by itself.
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
    """Return the names by which peft means the fused experts of this kind of model, wherever they stand in it.

    Its tables are private: where a version has none, such names are refused when they are added.
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
    """Tell whether a Mamba layer's fused kernel takes the weight without calling the module: additions do not count."""
    mixer, _, own = name.rpartition(".")
    is_mamba = {"A_log", "D"} <= dict(model.get_submodule(mixer).named_parameters(recurse=False)).keys()
    return own == "out_proj" and is_mamba


def check_additions(model: nn.Module) -> None:
    """Raise ConfigError for additions that are none to a linear layer: an export could not merge them."""
    for name, module in model.named_modules():
        layer = getattr(module, "base_layer", None)
        if isinstance(layer, nn.Module) and not isinstance(layer, nn.Linear | Conv1D):
            raise ConfigError(
                f"train.lora.target_modules: {name} is of type {type(layer).__name__}; low-rank additions are for"
                " linear layers: take it out, or train without lora and freeze what shall stay (train.freeze)"
            )
        if isinstance(layer, nn.Module) and is_read_by_kernel(model, name):
            raise ConfigError(
                f"train.lora.target_modules: {name} is part of a Mamba layer, whose kernel reads its weight without the"
                " addition: take it out"
            )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not (name.endswith("weight") and (LORA_A in name or LORA_B in name)):
            raise ConfigError(
                f"train.lora.target_modules: {name} would be trained as well, which is no addition to a linear layer;"
                " name linear layers only"
            )


class LoraWeights:
    """First weights of a model with low-rank additions: A random, B zero, the rest from where the model comes from."""

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
        """Return A, [rank, inputs], uniform within 1 / sqrt(inputs), as peft and torch's linear layers begin."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(shape[1])

    def finish(self, elsewhere: Collection[str]) -> None:
        self.base.finish([base_name(name) for name in elsewhere])


def base_name(name: str) -> str:
    """Return the name that a parameter has in a model without low-rank additions."""
    return name.replace(BASE, ".")


def merged(
    weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, lora: LoraConfig, *, transposed: bool
) -> torch.Tensor:
    """Return W + alpha / rank * B A in fp32, the weight of a layer that acts as W and its addition do.

    A is [rank, inputs], B [outputs, rank], W [outputs, inputs], or with `transposed` the other way as GPT-2 keeps it.
    """
    addition = (lora.alpha / lora.rank) * (lora_b.float() @ lora_a.float())
    return weight.float() + (addition.T if transposed else addition)


@dataclass(frozen=True, kw_only=True)
class PlainTensors:
    """The plain model that a run's model acts as: trained weights, frozen ones, and low-rank additions merged in.

    `skeleton` is the plain model without memory, `trained` the names that a checkpoint holds, `read` returns one of
    those whole, `first` the model's first weights without additions, `tied` the other names that it had for its tensors
    then: `skeleton` may have tensors of their own for them.
    """

    skeleton: nn.Module
    trained: Collection[str]
    read: Callable[[str], torch.Tensor]
    first: Weights
    lora: LoraConfig | None
    tied: Mapping[str, str] = field(default_factory=dict)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the plain model by its name there, whole."""
        if name in self.trained:
            return self.read(name)
        outline = self.skeleton.state_dict()[name]
        first = self.first.part(self.tied.get(name, name), tuple(outline.shape), 0, outline.numel())
        weight = first.reshape(outline.shape)
        lora_a, lora_b = addition_names(name)
        if self.lora is None or lora_a not in self.trained:
            return weight
        transposed = isinstance(self.skeleton.get_submodule(name.rpartition(".")[0]), Conv1D)
        return merged(weight, self.read(lora_a), self.read(lora_b), self.lora, transposed=transposed)


def addition_names(name: str) -> tuple[str, str]:
    """Return the names of the low-rank matrices that may be beside a weight."""
    layer, _, kind = name.rpartition(".")
    return f"{layer}{LORA_A}{kind}", f"{layer}{LORA_B}{kind}"
