"""The newest checkpoint as a Hugging Face folder, one output file in memory at a time, read back before it is shown."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from cluster.errors import CheckpointError
from cluster.files import whole_folder, write_json
from training.checkpoint_files import Commit, first_difference, newest_checkpoint, read_commit, read_weights
from training.config import ExportConfig
from training.model import ModelOrigin
from training.stops import stop_token_ids

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
READABLE = 0o644  # safetensors writes 0600 whatever the umask: a colleague could not read the model


def export(origin: ModelOrigin, checkpoints: Path, config: ExportConfig, output: Path) -> int:
    """Write `output`, a folder that transformers, vLLM and others open; return the exported step.

    Raises CheckpointError, leaving an older export as it was, if what was written does not read back bit for bit.
    """
    checkpoint = newest_checkpoint(checkpoints)
    commit = read_commit(checkpoint)
    skeleton = origin.skeleton
    check_names(skeleton, commit, checkpoint)
    dtype = DTYPES[config.dtype]
    with whole_folder(output) as folder:
        write_weights(folder, checkpoint, commit, dtype, config.shard_bytes)
        write_config(folder, skeleton, dtype)
        write_tokenizer(folder, origin.tokenizer)
        verify(folder, checkpoint, commit, dtype)
    log.info("exported step %d to %s", commit.step, output)
    return commit.step


def check_names(skeleton: PreTrainedModel, commit: Commit, checkpoint: Path) -> None:
    shapes = {name: list(parameter.shape) for name, parameter in skeleton.named_parameters()}
    if shapes != commit.shapes:
        other = first_difference(shapes, commit.shapes)
        raise CheckpointError(f"{checkpoint}: holds another model than the run's; first difference: {other}")


def write_weights(folder: Path, checkpoint: Path, commit: Commit, dtype: torch.dtype, shard_bytes: int) -> None:
    """Write the safetensors files and, for several, their index."""
    outlines = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in commit.shapes.items()}
    split = split_torch_state_dict_into_shards(outlines, max_shard_size=shard_bytes)
    for filename, names in split.filename_to_tensors.items():
        tensors = read_weights(checkpoint, {name: commit.shapes[name] for name in names})
        path = folder / filename
        save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
        path.chmod(READABLE)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def write_config(folder: Path, skeleton: PreTrainedModel, dtype: torch.dtype) -> None:
    """Write config.json in the words of transformers 5 and, beside them, those of 4."""
    config = skeleton.config
    config.architectures = [type(skeleton).__name__]
    config.dtype = dtype
    config.save_pretrained(folder)
    values = read_json(folder / "config.json")
    rope = values.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        # transformers 4 does not know rope_parameters and would take 10000, without a word
        values["rope_theta"] = rope["rope_theta"]
        values["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    write_json(folder / "config.json", values)


def write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write the tokenizer so that transformers 4 and 5 load it, and which tokens end an answer."""
    tokenizer.save_pretrained(folder)
    values = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {**values, "tokenizer_class": "PreTrainedTokenizerFast"})
    # no max_new_tokens here: it would overrule the limits of an evaluation harness
    generation = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_token_ids(tokenizer) or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    generation.save_pretrained(folder)


def verify(folder: Path, checkpoint: Path, commit: Commit, dtype: torch.dtype) -> None:
    """Open the folder as a user would, and compare every parameter with the checkpoint, bit for bit."""
    disable_progress_bar()
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    wrong = {kind: names for kind, names in loading.items() if names}
    if wrong:
        raise CheckpointError(f"{folder}: transformers does not load what was written: {wrong}")
    for name, parameter in model.named_parameters():
        expected = read_weights(checkpoint, {name: commit.shapes[name]})[name].to(dtype)
        if not torch.equal(parameter.detach(), expected):
            raise CheckpointError(f"{folder}: {name} reads back differently from {checkpoint}")


def read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
