"""The newest checkpoint as a Hugging Face folder: streamed in chunks, read back and compared before it is shown."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from cluster.errors import CheckpointError
from cluster.files import whole_folder, write_json
from training.checkpoint_files import Commit, first_difference, newest_checkpoint, stored_state
from training.checkpoint_files import verify as verify_checkpoint
from training.config import ExportConfig
from training.model import ModelOrigin
from training.rank_files import StoredState, bytes_of, write_all
from training.stops import stop_token_ids

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
STORED_DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}  # as safetensors spells them
BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}  # compared as integers: a NaN is not equal to itself
CHUNK_ELEMENTS = 1 << 17  # half a megabyte of fp32 at a time: it stays in the processor's cache

Shapes = Mapping[str, list[int]]


def export(origin: ModelOrigin, checkpoints: Path, config: ExportConfig, output: Path) -> int:
    """Write `output`, a folder that transformers, vLLM and others open; return the exported step.

    Takes the memory of a chunk, however large the model is. Raises CheckpointError, leaving an older export as it was,
    if the checkpoint is damaged or what was written does not read back bit for bit.
    """
    checkpoint = newest_checkpoint(checkpoints)
    commit = verify_checkpoint(checkpoint)
    skeleton = origin.skeleton
    check_shapes(skeleton, commit, checkpoint)
    dtype = DTYPES[config.dtype]
    with single_threaded(), whole_folder(output) as folder, stored_state(checkpoint, commit) as state:
        weights = ConvertedWeights(state, dtype)
        files = write_weights(folder, commit.shapes, weights, config.shard_bytes)
        write_config(folder, skeleton, dtype)
        write_tokenizer(folder, origin.tokenizer)
        check_loads(folder, commit.shapes, dtype)
        for path, shapes in files.items():
            check_bits(path, shapes, weights)
    log.info("exported step %d to %s", commit.step, output)
    return commit.step


@contextmanager
def single_threaded() -> Iterator[None]:
    """Keep torch from dealing chunks to threads, which wait for the next one by spinning: 2 to 8 times the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_shapes(skeleton: PreTrainedModel, commit: Commit, checkpoint: Path) -> None:
    shapes = {name: list(parameter.shape) for name, parameter in skeleton.named_parameters()}
    if shapes != commit.shapes:
        other = first_difference(shapes, commit.shapes)
        raise CheckpointError(f"{checkpoint}: holds another model than the run's; first difference: {other}")
    empty = [name for name, shape in shapes.items() if not math.prod(shape)]
    if empty:
        raise CheckpointError(f"{checkpoint}: {empty[0]} has no elements; a safetensors reader would not see it")


class ConvertedWeights:
    """A checkpoint's master weights in the precision of an export."""

    def __init__(self, state: StoredState, dtype: torch.dtype) -> None:
        self.state = state
        self.dtype = dtype
        self.master = torch.empty(CHUNK_ELEMENTS)
        self.converted = self.master if dtype == torch.float32 else torch.empty(CHUNK_ELEMENTS, dtype=dtype)

    def chunks(self, name: str, numel: int) -> Iterator[torch.Tensor]:
        """Yield the flattened parameter in its order; a chunk lasts until the next one."""
        for start in range(0, numel, CHUNK_ELEMENTS):
            count = min(CHUNK_ELEMENTS, numel - start)
            master = self.state.read(f"master.{name}", start, self.master[:count])
            yield master if self.converted is self.master else self.converted[:count].copy_(master)


def write_weights(folder: Path, shapes: Shapes, weights: ConvertedWeights, shard_bytes: int) -> dict[Path, Shapes]:
    """Write the safetensors files and, for several, their index; return what is in each."""
    outlines = {name: torch.empty(shape, dtype=weights.dtype, device="meta") for name, shape in shapes.items()}
    split = split_torch_state_dict_into_shards(outlines, max_shard_size=shard_bytes)
    files: dict[Path, Shapes] = {
        folder / name: {key: shapes[key] for key in keys} for name, keys in split.filename_to_tensors.items()
    }
    for path, held in files.items():
        write_tensors(path, held, weights)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
    return files


def write_tensors(path: Path, shapes: Shapes, weights: ConvertedWeights) -> None:
    """Write a safetensors file (8 bytes of header length, JSON header, data in the header's order), header first."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * weights.dtype.itemsize
        header[name] = {"dtype": STORED_DTYPES[weights.dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin where a reader may map them
    with path.open("wb", buffering=0) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for chunk in weights.chunks(name, math.prod(shape)):
                write_all(stream.fileno(), bytes_of(chunk.view(torch.uint8)))


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


def check_loads(folder: Path, shapes: Shapes, dtype: torch.dtype) -> None:
    """Open the folder as a user would: transformers finds every parameter, and nothing that has no place.

    It maps the files, so this takes no memory for the weights.
    """
    disable_progress_bar()
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    wrong: dict[str, Any] = {kind: names for kind, names in loading.items() if names}
    loaded = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    if loaded != shapes:
        wrong["loaded"] = f"another model, first difference: {first_difference(loaded, dict(shapes))}"
    if wrong:
        raise CheckpointError(f"{folder}: transformers does not load what was written: {wrong}")


def check_bits(path: Path, shapes: Shapes, weights: ConvertedWeights) -> None:
    """Compare every tensor of a file, as the safetensors library reads it, with the checkpoint, bit for bit."""
    for name, shape in shapes.items():
        with safe_open(path, framework="pt") as stored:  # one tensor at a time: what was mapped for it is let go
            tensor = stored.get_tensor(name)
        written = tensor.reshape(-1).view(BITS[tensor.dtype]).split(CHUNK_ELEMENTS)
        expected = weights.chunks(name, math.prod(shape))
        is_same = (tensor.dtype, list(tensor.shape)) == (weights.dtype, list(shape)) and all(
            torch.equal(ours, theirs.view(ours.dtype)) for ours, theirs in zip(written, expected, strict=True)
        )
        if not is_same:
            raise CheckpointError(f"{path}: {name} reads back differently from the checkpoint")


def read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
