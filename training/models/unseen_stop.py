"""Find stop tokens that a base model never saw in training, which LoRA cannot teach."""

from __future__ import annotations

from pathlib import Path

import torch

from cluster.model_files import weight_files
from training.models.source import ModelOrigin
from training.models.stop_tokens import stop_token_ids

SAME = 1e-3  # embeddings nearer than this share of their norm are the same: never trained apart
OTHERS = 2  # other tokens with the same embedding
BLOCK = 8192  # rows of the embeddings that are compared at a time


def unseen_stop_warnings(origin: ModelOrigin) -> list[str]:
    """Return a sentence if no stop token has an output embedding of its own, so that a frozen head cannot write it.

    Reads the output embeddings; for a run with LoRA. Nothing is said of weights that are not on this machine.
    """
    stops = stop_token_ids(origin.tokenizer)
    if origin.folder is None or not has_weights(origin.folder) or not stops:
        return []
    same = {stop: same_embeddings(origin, stop) for stop in stops}
    if min(same.values()) < OTHERS:
        return []
    stop = stops[-1]
    return [
        f"train.lora: the stop token {origin.tokenizer.convert_ids_to_tokens(stop)!r} has the same embedding as"
        f" {same[stop]:,} other tokens: the model never learnt it, and LoRA, which leaves the output head as it is,"
        " cannot teach the model to stop; train all weights (remove `lora`) if answers must end"
    ]


def same_embeddings(origin: ModelOrigin, token: int) -> int:
    """Return how many other tokens have this one's output embedding but for noise; 0 if it is not known."""
    head = origin.skeleton.get_output_embeddings()
    # of tied weights, which are one parameter with two names, named_parameters gives the name that the files have
    name = next(
        (name for name, value in origin.skeleton.named_parameters() if value is getattr(head, "weight", 0)), None
    )
    if name is None or origin.stored_vocab_size is not None:
        return 0
    rows, width = origin.skeleton.get_parameter(name).shape
    weights = origin.first_weights(0)

    def part(first: int, last: int) -> torch.Tensor:
        return weights.part(name, (rows, width), first * width, last * width).reshape(-1, width).float()

    own = part(token, token + 1)
    near = [(part(at, min(at + BLOCK, rows)) - own).norm(dim=1) < SAME * own.norm() for at in range(0, rows, BLOCK)]
    return int(torch.cat(near).sum()) - 1


def has_weights(folder: Path) -> bool:
    return all((folder / name).is_file() for name in weight_files(folder))
