"""The newest checkpoint as a Hugging Face folder: streamed in chunks, read back and checked before it is shown."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar
from xxhash import xxh3_128

from cluster.errors import CheckpointError
from cluster.files import whole_folder, write_json
from training.checkpoint_files import Commit, first_difference, newest_checkpoint, stored_state
from training.checkpoint_files import verify as verify_checkpoint
from training.config import ExportConfig, LoraConfig
from training.model import ModelOrigin
from training.rank_files import StoredState, bytes_of, write_all
from training.stops import stop_token_ids
from training.trained import PlainTensors

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
STORED_DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}  # as safetensors spells them
CHUNK_ELEMENTS = 1 << 17  # half a megabyte of fp32 at a time: it stays in the processor's cache

Shapes = Mapping[str, list[int]]
Digests = Mapping[str, bytes]  # 128 bits each


def export(
    origin: ModelOrigin, checkpoints: Path, config: ExportConfig, output: Path, partial: Partial | None = None
) -> int:
    """Write `output`, a folder that transformers, vLLM and others open; return the exported step.

    Takes the memory of a chunk, however large the model is; with `partial`, for a run that trained only a part of its
    model, the memory of a tensor. Raises CheckpointError, leaving an older export as it was, if the checkpoint is
    damaged or what was written does not read back bit for bit.
    """
    checkpoint = newest_checkpoint(checkpoints)
    commit = verify_checkpoint(checkpoint, kind="master")
    skeleton = origin.skeleton
    shapes: Shapes = {name: list(parameter.shape) for name, parameter in skeleton.named_parameters()}
    if partial is None:
        check_shapes(shapes, commit, checkpoint)
    else:
        partial.check(commit, checkpoint)
    dtype = DTYPES[config.dtype]
    with single_threaded(), whole_folder(output) as folder, stored_state(checkpoint, commit) as state:
        weights = ConvertedWeights(stored_reader(state) if partial is None else partial.reader(state, commit), dtype)
        files = write_weights(folder, shapes, weights, config.shard_bytes)
        write_config(folder, skeleton, dtype)
        write_tokenizer(folder, origin.tokenizer)
        check_loads(folder, shapes, dtype)
        for path, digests in files.items():
            check_bits(path, {name: shapes[name] for name in digests}, dtype, digests)
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


def check_shapes(shapes: Shapes, commit: Commit, checkpoint: Path) -> None:
    if shapes != commit.shapes:
        other = first_difference(dict(shapes), commit.shapes)
        raise CheckpointError(f"{checkpoint}: holds another model than the run's; first difference: {other}")
    empty = [name for name, shape in shapes.items() if not math.prod(shape)]
    if empty:
        raise CheckpointError(f"{checkpoint}: {empty[0]} has no elements; a safetensors reader would not see it")


Reader = Callable[[str, int, torch.Tensor], torch.Tensor]  # fills a tensor from an element of a parameter on


def stored_reader(state: StoredState) -> Reader:
    return lambda name, start, out: state.read(f"master.{name}", start, out)


@dataclass(frozen=True, kw_only=True)
class Partial:
    """A run that trained only a part of its model: frozen weights come from its origin, additions are merged."""

    origin: ModelOrigin
    seed: int
    lora: LoraConfig | None

    def check(self, commit: Commit, checkpoint: Path) -> None:
        """Raise CheckpointError if the weights that were frozen are not those that the model has now."""
        then, now = commit.identity.get("frozen weights"), self.origin.source_digest(self.seed)
        if then != now:
            raise CheckpointError(
                f"{checkpoint}: was trained upon other frozen weights (digest {str(then)[:16]}) than the model's now"
                f" ({now[:16]}): put back model.path, train.freeze and train.lora as they were"
            )

    def reader(self, state: StoredState, commit: Commit) -> Reader:
        """Return a reader of the plain model; it keeps one tensor."""

        def trained(name: str) -> torch.Tensor:
            shape = commit.shapes[name]
            return state.read(f"master.{name}", 0, torch.empty(math.prod(shape))).reshape(shape)

        plain = PlainTensors(
            skeleton=self.origin.skeleton,
            trained=commit.shapes,
            read=trained,
            first=self.origin.first_weights(self.seed),
            lora=self.lora,
        )

        @lru_cache(maxsize=1)
        def whole(name: str) -> torch.Tensor:
            return plain.tensor(name).reshape(-1).float()

        return lambda name, start, out: out.copy_(whole(name)[start : start + out.numel()])


class ConvertedWeights:
    """The weights of the exported model in the precision of the export."""

    def __init__(self, read: Reader, dtype: torch.dtype) -> None:
        self.read = read
        self.dtype = dtype
        self.master = torch.empty(CHUNK_ELEMENTS)
        self.converted = self.master if dtype == torch.float32 else torch.empty(CHUNK_ELEMENTS, dtype=dtype)

    def chunks(self, name: str, numel: int) -> Iterator[torch.Tensor]:
        """Yield the flattened parameter in its order; a chunk lasts until the next one."""
        for start in range(0, numel, CHUNK_ELEMENTS):
            count = min(CHUNK_ELEMENTS, numel - start)
            master = self.read(name, start, self.master[:count])
            yield master if self.converted is self.master else self.converted[:count].copy_(master)


def write_weights(folder: Path, shapes: Shapes, weights: ConvertedWeights, shard_bytes: int) -> dict[Path, Digests]:
    """Write the safetensors files and, for several, their index; return the digests of what is in each."""
    outlines = {name: torch.empty(shape, dtype=weights.dtype, device="meta") for name, shape in shapes.items()}
    split = split_torch_state_dict_into_shards(outlines, max_shard_size=shard_bytes)
    files = {
        folder / name: write_tensors(folder / name, {key: shapes[key] for key in keys}, weights)
        for name, keys in split.filename_to_tensors.items()
    }
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
    return files


def write_tensors(path: Path, shapes: Shapes, weights: ConvertedWeights) -> Digests:
    """Write a safetensors file (8 bytes of header length, JSON header, data in the header's order), header first.

    Return the digest of each tensor's bytes, taken before they are written.
    """
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
        hashes = {name: xxh3_128() for name in shapes}
        for name, shape in shapes.items():
            for chunk in weights.chunks(name, math.prod(shape)):
                data = bytes_of(chunk.view(torch.uint8))
                hashes[name].update(data)
                write_all(stream.fileno(), data)
    return {name: found.digest() for name, found in hashes.items()}


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


def check_bits(path: Path, shapes: Shapes, dtype: torch.dtype, digests: Digests) -> None:
    """Check every tensor of a file, as the safetensors library reads it, by the digest of all its bytes."""
    for name, shape in shapes.items():
        with safe_open(path, framework="pt") as stored:  # one tensor at a time: what was mapped for it is let go
            tensor = stored.get_tensor(name)
        content = bytes_of(tensor.reshape(-1).view(torch.uint8))
        is_same = (tensor.dtype, list(tensor.shape)) == (dtype, list(shape))
        if not is_same or xxh3_128(content).digest() != digests[name]:
            raise CheckpointError(f"{path}: {name} reads back differently from what was written")


def read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
