"""Initial weights of a model with enlarged embeddings: each new row is the mean of the old ones."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from functools import cache

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from cluster.errors import ConfigError
from training.models.initial_weights import Weights

CHUNK_ROWS = 4096  # rows of an embedding summed at a time

Shapes = Mapping[str, tuple[int, ...]]


class ResizedWeights:
    """Weights with more rows than their source has; each new row is the mean of the old ones.

    `stored` has the shapes in the source, by name, of the enlarged parameters. The mean makes a new token as likely as
    the old ones are on average; random values may make it the likeliest (Hewitt 2021, "Initializing New Word Embeddings
    for Pretrained Language Models").
    """

    def __init__(self, base: Weights, stored: Shapes) -> None:
        self.base = base
        self.stored = stored
        self.mean_row = cache(self.computed_mean)

    def part(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        old_shape = self.stored.get(name, shape)
        end_of_old = torch.Size(old_shape).numel()
        if stop <= end_of_old:
            return self.base.part(name, old_shape, start, stop)
        old = self.base.part(name, old_shape, min(start, end_of_old), end_of_old)
        mean = self.mean_row(name)
        new = mean[torch.arange(max(start, end_of_old), stop) % len(mean)]
        return torch.cat([old.float(), new])

    def computed_mean(self, name: str) -> torch.Tensor:
        """Return the mean of a stored parameter's rows, [row], summed in fp64 in a fixed order: equal on any rank."""
        shape = self.stored[name]
        row = torch.Size(shape[1:]).numel()
        total = torch.zeros(row, dtype=torch.float64)
        for first in range(0, shape[0], CHUNK_ROWS):
            last = min(first + CHUNK_ROWS, shape[0])
            total += self.base.part(name, shape, first * row, last * row).reshape(-1, row).double().sum(0)
        return (total / shape[0]).float()

    def finish(self, elsewhere: Collection[str]) -> None:
        self.base.finish(elsewhere)


def resized_config(config: PretrainedConfig, vocab_size: int) -> PretrainedConfig:
    """Return the configuration with another vocabulary size."""
    resized = copy.deepcopy(config)
    resized.get_text_config().vocab_size = vocab_size
    return resized


def enlarged_shapes(stored: PreTrainedModel, enlarged: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Return the stored shapes of the parameters that are larger in the enlarged model: embeddings and output head.

    Raises ConfigError if the vocabulary size changes the shape of any other parameter, or of none.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in enlarged.named_parameters()}
    changed = {n: tuple(p.shape) for n, p in stored.named_parameters() if tuple(p.shape) != shapes[n]}
    wrong = sorted(changed.keys() - vocabulary_names(enlarged))
    if wrong or not changed:
        what = f"{wrong[0]} would change its shape too" if wrong else "its vocab_size does not set their number"
        raise ConfigError(
            f"model.resize_embeddings: the embeddings of a {enlarged.config.model_type} cannot be enlarged: {what}; "
            "use a chat template that needs no new tokens, such as `chat_template: plain`"
        )
    return changed


def vocabulary_names(model: PreTrainedModel) -> set[str]:
    """Return the names of the parameters with one row per token."""
    modules: list[nn.Module | None] = [model.get_input_embeddings(), model.get_output_embeddings()]
    owned = [parameter for module in modules if module is not None for parameter in module.parameters()]
    return {name for name, parameter in model.named_parameters() if any(parameter is own for own in owned)}
