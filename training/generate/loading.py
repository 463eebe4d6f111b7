"""Load an exported model to generate text with."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from cluster.errors import CheckpointError, ClusterError
from cluster.machine import free_memory_bytes, has_bf16
from cluster.model_files import ADAPTER_CONFIG, CONFIG, read_settings
from data_prep.shards.tokenizer_files import open_tokenizer

log = logging.getLogger(__name__)

ADAPTER_WEIGHTS = "adapter_model.safetensors"
FULL_HOST = 0.5  # of its free memory
FULL_GPU = 0.9  # of its free memory; the rest is for the cache of keys and values


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(folder: Path) -> Any:
    """Return the model of a Hugging Face folder on the best device, in evaluation mode.

    It is in its stored dtype, or in fp32 on a CPU that is slow in a shorter one. A model that does not fit one GPU is
    spread over all of them and the host's memory.
    """
    disable_progress_bar()
    if is_quantized(folder):
        model = in_quick_type(load_unpacked(folder).to(best_device()))
    elif best_device().type == "cuda" and weight_bytes(folder) > FULL_GPU * torch.cuda.mem_get_info()[0]:
        model = load_spread(folder)
    else:
        model = in_quick_type(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(best_device()))
    keep_only_token_ids(model)
    return model.eval()


def in_quick_type(model: Any) -> Any:
    """Return a model of 16 bits on a CPU that is slow in them as one of fp32, if memory has room for it.

    The weights are the same numbers; what is computed from them is rounded less.
    """
    if model.device.type != "cpu" or model.dtype not in (torch.bfloat16, torch.float16) or has_bf16():
        return model
    more_bytes = sum(tensor.nbytes for tensor in model.parameters())
    if more_bytes > FULL_HOST * free_memory_bytes():
        log.warning("this CPU is slow in %s, and there is no memory to compute in fp32", model.dtype)
        return model
    return model.float()


def is_quantized(folder: Path) -> bool:
    """Return whether a folder's weights are integers in the layout of compressed-tensors."""
    described = read_settings(folder / CONFIG).get("quantization_config")
    return isinstance(described, dict) and described.get("quant_method") == "compressed-tensors"


def load_unpacked(folder: Path) -> Any:
    """Return a quantized model with its weights as floats again, in plain layers that everything here can call.

    transformers would do the same at the first call, and then round the weights again at each call.
    """
    if importlib.util.find_spec("compressed_tensors") is None:
        raise ClusterError(
            f"{folder}: its weights are quantized, and compressed-tensors, which reads them, is not installed:"
            " pip install -e '.[quantize]'"
        )
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config["dequantize"] = True
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype="auto")


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def load_spread(folder: Path) -> Any:
    """Return a model spread over the GPUs and the host by accelerate."""
    if importlib.util.find_spec("accelerate") is None:
        raise ClusterError(
            f"{folder}: its {weight_bytes(folder) / 1e9:,.1f} GB do not fit the free memory of one GPU, and accelerate,"
            " which spreads a model over several, is not installed: pip install accelerate"
        )
    log.info("%s: larger than one GPU's free memory, so it is spread over the GPUs and the host", folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="auto")


def keep_only_token_ids(model: Any) -> None:
    """Drop the model's own sampling settings: `generate` would use them wherever ours say nothing."""
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )


def load_export(folder: Path) -> tuple[Any, Any]:
    """Return the model and tokenizer of an exported folder; an adapter is loaded onto the base model that it names."""
    if not any((folder / name).is_file() for name in (CONFIG, ADAPTER_CONFIG)):
        raise CheckpointError(f"{folder}: no exported model here; run `shardline export RUN.yaml` first")
    try:
        model, tokenizer = load_model(folder), open_tokenizer(folder)
        check_adapter(model, folder)
    except (OSError, ValueError, SafetensorError) as error:
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder}: cannot be loaded ({told}); run `shardline export RUN.yaml` again") from None
    return model, tokenizer


def check_adapter(model: Any, folder: Path) -> None:
    """Raise CheckpointError if the folder holds an adapter and the model has not got every tensor of it.

    transformers only warns of adapter weights that it finds no place for, and the model would answer as its base does.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    from peft import get_peft_model_state_dict

    stored = load_file(folder / ADAPTER_WEIGHTS)
    loaded = get_peft_model_state_dict(model) if getattr(model, "peft_config", None) else {}
    found = {name.removeprefix("base_model.model."): tensor for name, tensor in loaded.items()}
    for name, tensor in stored.items():
        here = found.get(name.removeprefix("base_model.model."))
        if here is None or not torch.equal(here.cpu().to(tensor.dtype), tensor):
            raise CheckpointError(
                f"{folder}: {name} of the adapter was not applied to the model; export again with a peft and a"
                " transformers that know this model, or with export.lora: merged"
            )
