"""The two models of an evaluation: what the run started from, and its export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from cluster.errors import CheckpointError
from data_prep.shards import Manifest, ShardReader, tokenizer_digest
from training.evaluate.scoring import Passes, Scores
from training.generate.loading import best_device, load_export, load_model
from training.models.source import ModelOrigin
from training.models.stop_tokens import answered_text
from training.step.batches import micro_batch
from training.step.isolation import check_isolation
from training.step.packed_model import PackedModel


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A model ready to be scored, by this process alone or by all ranks of a world.

    `passes` is collective where ranks share the model, and `gather` returns what each of them found.
    """

    packed: PackedModel
    passes: Passes
    rank: int
    world_size: int
    gather: Callable[[Scores], Sequence[Scores]]


Opened = tuple[Any, Callable[[], Scored]]
"""A model that generates, and what turns it into one that is scored: after that, it generates no more."""


class LocalModels:
    """Both models, in this process, one at a time, in the precision of the export."""

    world_size = 1

    def __init__(self, origin: ModelOrigin, export: Path, reader: ShardReader, seed: int) -> None:
        self.origin, self.export, self.reader, self.seed = origin, export, reader, seed
        self.dtype: torch.dtype | None = None

    @contextmanager
    def tuned(self) -> Iterator[Opened]:
        model, _ = load_export(self.export)
        self.dtype = model.dtype
        yield model, lambda: self.scored(model)

    @contextmanager
    def base(self) -> Iterator[Opened]:
        model = base_model(self.origin, self.seed)
        model = model if self.dtype is None else model.to(self.dtype)
        yield model, lambda: self.scored(model)

    def scored(self, model: Any) -> Scored:
        """Return the model as training calls it, with the documents of a row isolated."""
        packed = PackedModel(model, model, model.device)
        example = micro_batch(self.reader.rows([0]), index=0)
        check_isolation(packed, self.reader.row_tokens, [example], list)
        return Scored(packed=packed, passes=packed.parts, rank=0, world_size=1, gather=lambda mine: [mine])


def base_model(origin: ModelOrigin, seed: int) -> Any:
    """Return the model that the run started from."""
    if origin.folder is not None:
        return origin.enlarge(load_model(origin.folder), seed)
    model = AutoModelForCausalLM.from_config(deepcopy(origin.config))
    weights = origin.first_weights(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.part(name, tuple(parameter.shape), 0, parameter.numel()).reshape(parameter.shape))
    return model.to(best_device()).eval()


def check_export(export: Path, tokenizer: Any, manifest: Manifest, of_rows: Any) -> None:
    """Raise CheckpointError unless the export has the tokenizer and the chat template of the rows.

    `of_rows` is the rows' own tokenizer. An export may write its template in another form, for transformers 4, so what
    it renders is compared.
    """
    wrong = ""
    if tokenizer_digest(tokenizer) != manifest.tokenizer_digest:
        wrong = "its tokenizer is not the one that the rows were made with"
    elif manifest.conversational and answered_text(tokenizer) != answered_text(of_rows):
        wrong = "its chat template renders a conversation in another form than the rows have"
    if wrong:
        raise CheckpointError(f"{export}: {wrong}; run `shardline export RUN.yaml` again")
