"""Export a run's LoRA adapters alone, as a folder that peft loads onto the base model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from cluster.errors import ConfigError
from training.config import LoraConfig
from training.export.exported_weights import ConvertedWeights, Reader, check_bits, write_tensors
from training.models.name_conversions import Outgoing
from training.models.source import ModelOrigin
from training.models.trainable import LORA_A, LORA_B


def write_adapter(
    folder: Path,
    origin: ModelOrigin,
    shapes: Mapping[str, list[int]],
    read: Reader,
    lora: LoraConfig | None,
    dtype: torch.dtype,
) -> None:
    """Write peft's two files for the adapters of a checkpoint with these shapes, and read them back.

    Raises ConfigError if the run has no adapters, or no base model that others could load them onto.
    """
    import peft  # a run has adapters only if peft is installed

    if lora is None:
        raise ConfigError("export.lora: 'adapter', but the run was trained without train.lora; set 'merged'")
    if origin.folder is None:
        raise ConfigError("export.lora: 'adapter' needs a base model (model.path); set 'merged' for a new model")
    layers = sorted({name.partition(LORA_A)[0] for name in shapes if LORA_A in name})
    settings = peft.LoraConfig(
        base_model_name_or_path=name_of(origin.folder),
        task_type="CAUSAL_LM",
        inference_mode=True,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=shortest_names(layers, origin.skeleton),
        fan_in_fan_out=all(isinstance(origin.skeleton.get_submodule(layer), Conv1D) for layer in layers),
    )
    settings.save_pretrained(str(folder))
    plan = {
        peft_name(name): Outgoing(shape=tuple(shape), dtype=dtype, source=name)
        for name, shape in shapes.items()
        if LORA_A in name or LORA_B in name
    }
    path = folder / "adapter_model.safetensors"
    check_bits(path, plan, write_tensors(path, plan.keys(), ConvertedWeights(read, plan)))


def peft_name(name: str) -> str:
    """Return the name in peft's files of a tensor of the adapter 'default'."""
    return "base_model.model." + name.replace(LORA_A, ".lora_A.").replace(LORA_B, ".lora_B.")


def shortest_names(layers: Collection[str], model: nn.Module) -> list[str]:
    """Return the last components of the layers' names, as other programs expect; full names if those are ambiguous."""
    words = {layer.rpartition(".")[2] for layer in layers}
    meant = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in words}
    return sorted(words if meant == set(layers) else layers)


def name_of(folder: Path) -> str:
    """Return the Hub id of a model in the Hub's cache (models--OWNER--NAME/snapshots/COMMIT), else its folder."""
    cached = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return cached.removeprefix("models--").replace("--", "/")
    return str(folder.resolve())
