"""Load an exported model to generate text with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from cluster.errors import CheckpointError
from data_prep.shards.tokenizer_files import open_tokenizer


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(folder: Path) -> Any:
    """Return the model of a Hugging Face folder on the best device, in evaluation mode."""
    disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder).to(best_device()).eval()


def load_export(folder: Path) -> tuple[Any, Any]:
    """Return the model and tokenizer of an exported folder; an adapter is loaded onto the base model that it names."""
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise CheckpointError(f"{folder}: no exported model here; run `shardline export RUN.yaml` first")
    try:
        return load_model(folder), open_tokenizer(folder)
    except (OSError, ValueError, SafetensorError) as error:
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder}: cannot be loaded ({told}); run `shardline export RUN.yaml` again") from None
