"""Export the newest checkpoint as a Hugging Face folder: streamed in chunks, read back and checked, then published."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from cluster.disk.atomic_files import whole_folder
from cluster.errors import CheckpointError
from cluster.wording import count_of
from training.checkpoints.layout import Commit, first_difference, newest_checkpoint, stored_state
from training.checkpoints.layout import verify as verify_checkpoint
from training.checkpoints.shard_files import StoredState
from training.config import ExportConfig, LoraConfig
from training.export.adapter import write_adapter
from training.export.export_config import write_config, write_generation_config
from training.export.export_record import write_record
from training.export.export_tokenizer import write_tokenizer
from training.export.exported_weights import ConvertedWeights, check_bits, write_weights
from training.models.initial_weights import tied_names
from training.models.name_conversions import outgoing, saved_tensors
from training.models.source import ModelOrigin, skeleton_of
from training.models.stored_tensors import stored_names
from training.models.trainable import PlainTensors, adapter_names

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

Shapes = Mapping[str, list[int]]


def export(
    origin: ModelOrigin, checkpoints: Path, config: ExportConfig, output: Path, partial: Partial | None = None
) -> int:
    """Write `output`, a folder that transformers, vLLM and others can load; return the exported step.

    Needs the memory of one chunk, however large the model is; of one expert, where files store experts one by one; of
    one tensor, for those that come from `partial`. Raises CheckpointError, leaving an older export untouched, if the
    checkpoint is damaged, if a trained tensor would not be exported, or if the files do not read back bit for bit.
    """
    checkpoint = newest_checkpoint(checkpoints)
    commit = verify_checkpoint(checkpoint, kind="master")
    skeleton = exported_skeleton(origin, commit)
    shapes = {name: list(tensor.shape) for name, tensor in saved_tensors(skeleton).items()}
    if partial is None or not (partial.lora or shapes.keys() - commit.shapes.keys()):
        check_shapes(shapes, commit, checkpoint)
    else:
        partial.check(shapes, commit, checkpoint)
    dtype = DTYPES[config.dtype]
    with single_threaded(), whole_folder(output) as folder, stored_state(checkpoint, commit) as state:
        write_tokenizer(folder, origin.tokenizer, skeleton.config)
        source = Source(state, commit, skeleton, partial)
        if config.lora == "adapter":
            write_adapter(folder, origin, commit.shapes, source.read, partial.lora if partial else None, dtype)
            source.check_all_used(checkpoint)
        else:
            plan = outgoing(skeleton, dtype, stored_names(origin.folder) if origin.folder else ())
            weights = ConvertedWeights(source.read, plan, skeleton)
            files = write_weights(folder, weights, config.shard_bytes)
            source.check_all_used(checkpoint)
            write_config(folder, skeleton, origin.folder, dtype)
            write_generation_config(folder, origin.tokenizer, origin.folder)
            check_loads(folder, shapes, dtype)
            for path, digests in files.items():
                check_bits(path, plan, digests)
        write_record(folder, commit)
    log.info("exported step %d to %s", commit.step, output)
    return commit.step


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run torch on one thread: chunks are small, and threads that spin between them took 2 to 8 times the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def exported_skeleton(origin: ModelOrigin, commit: Commit) -> PreTrainedModel:
    """Return the plain model on the meta device; untied if an adapter was trained on just one of two tied tensors."""
    names = [name for pair in tied_names(origin.skeleton).items() for name in pair]
    if not any(adapter_names(name)[0] in commit.shapes for name in names):
        return origin.skeleton
    config = deepcopy(origin.config)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    return skeleton_of(config)


def check_shapes(shapes: Shapes, commit: Commit, checkpoint: Path) -> None:
    """Raise CheckpointError unless the checkpoint holds exactly these tensors, none of them empty."""
    if shapes != commit.shapes:
        other = first_difference(dict(shapes), commit.shapes)
        raise CheckpointError(
            f"{checkpoint}: holds another model than the run's; first difference: {other}; restore model.path"
        )
    empty = [name for name, shape in shapes.items() if not math.prod(shape)]
    if empty:
        raise CheckpointError(
            f"{checkpoint}: {empty[0]} has no elements, so safetensors cannot store it; use another architecture"
        )


@dataclass(frozen=True, kw_only=True)
class Partial:
    """A run that trained part of its model: frozen weights come from its origin, and LoRA adapters are merged."""

    origin: ModelOrigin
    seed: int
    lora: LoraConfig | None

    def plain(
        self, skeleton: PreTrainedModel, trained: Collection[str], read: Callable[[str], torch.Tensor]
    ) -> PlainTensors:
        return PlainTensors(
            skeleton=skeleton,
            trained=trained,
            read=read,
            first=self.origin.first_weights(self.seed),
            lora=self.lora,
            tied=tied_names(self.origin.skeleton),
        )

    def check(self, shapes: Shapes, commit: Commit, checkpoint: Path) -> None:
        """Raise CheckpointError if the frozen weights of the run are not those that the model has now."""
        then, now = commit.identity.get("frozen weights"), self.origin.source_digest(self.seed)
        if then is None:
            check_shapes(shapes, commit, checkpoint)
        if then != now:
            raise CheckpointError(
                f"{checkpoint}: was trained on other frozen weights (digest {str(then)[:16]}) than the model has now"
                f" ({now[:16]}); restore model.path, train.freeze and train.lora"
            )


class Source:
    """The tensors of the plain model: from the checkpoint, and those it does not hold from the run's origin."""

    def __init__(self, state: StoredState, commit: Commit, skeleton: PreTrainedModel, partial: Partial | None) -> None:
        self.state, self.commit = state, commit
        self.used: set[str] = set()
        self.plain = partial.plain(skeleton, commit.shapes, self.trained) if partial else None
        self.whole = lru_cache(maxsize=1)(self.made)  # the spans of a tensor are read one after the other

    def read(self, name: str, start: int, out: torch.Tensor) -> torch.Tensor:
        """Fill `out` with elements of a flattened tensor, starting at `start`; return it."""
        if self.plain is None or name in self.commit.shapes:
            self.used.add(name)
            return self.state.read(f"master.{name}", start, out)
        return out.copy_(self.whole(name)[start : start + out.numel()])

    def made(self, name: str) -> torch.Tensor:
        """Return a tensor that the checkpoint does not hold, flattened."""
        if self.plain is None:
            raise RuntimeError(f"{name} is not in the checkpoint, and there is no other source")
        return self.plain.tensor(name).reshape(-1)

    def trained(self, name: str) -> torch.Tensor:
        """Return a whole tensor of the checkpoint."""
        self.used.add(name)
        shape = self.commit.shapes[name]
        return self.state.read(f"master.{name}", 0, torch.empty(math.prod(shape))).reshape(shape)

    def check_all_used(self, checkpoint: Path) -> None:
        """Raise CheckpointError if a trained tensor was not exported."""
        lost = sorted(self.commit.shapes.keys() - self.used)
        if lost:
            raise CheckpointError(
                f"{checkpoint}: {count_of(len(lost), 'trained tensor')} would not be exported:"
                f" {', '.join(lost[:3])}; restore model.path and train.lora"
            )


def check_loads(folder: Path, shapes: Shapes, dtype: torch.dtype) -> None:
    """Load the folder as a user would. Raises CheckpointError unless transformers finds exactly the model's tensors.

    It maps the files, so weights stored as the model holds them take no memory here.
    """
    disable_progress_bar()
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    wrong: dict[str, Any] = {kind: names for kind, names in loading.items() if names}
    loaded = {name: list(tensor.shape) for name, tensor in saved_tensors(model).items()}
    if loaded != shapes:
        wrong["loaded"] = f"another model, first difference: {first_difference(loaded, dict(shapes))}"
    if wrong:
        raise CheckpointError(f"{folder}: transformers does not load the export as written: {wrong}; please report it")
