"""What every variant of `step` does: the same model on the same packed rows, and what is noted of each step."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.network.world import World


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama, and the packed rows that it is given."""

    config: dict[str, Any]
    row_tokens: int
    document_tokens: int
    rows: int = 1  # of a rank and step


SPECIAL = {"bos_token_id": 0, "eos_token_id": 1}
SHAPES = {
    "10m": Shape(
        config={
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": 8192,
            "max_position_embeddings": 2048,
            **SPECIAL,
        },
        row_tokens=2048,
        document_tokens=256,
    ),
    "32m": Shape(
        config={
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "vocab_size": 8192,
            "max_position_embeddings": 2048,
            **SPECIAL,
        },
        row_tokens=2048,
        document_tokens=256,
    ),
    "1b": Shape(  # Llama 3.2 1B
        config={
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128_256,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            **SPECIAL,
        },
        row_tokens=4096,
        document_tokens=512,
        rows=2,
    ),
}
SHAPES["3b"] = Shape(  # Llama 3.2 3B
    config={
        **SHAPES["1b"].config,
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "head_dim": 128,
    },
    row_tokens=4096,
    document_tokens=512,
)
for size in ("1b", "3b"):
    SHAPES[f"{size}-8k"] = replace(SHAPES[size], row_tokens=8192, rows=1)
SHAPES["thin"] = Shape(  # hardly any arithmetic: what a step takes is the frameworks' time on the host
    config={
        **SHAPES["10m"].config,
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 32,
    },
    row_tokens=8,
    document_tokens=32,  # of which the shortest is a row
)
SHAPES["tiny"] = Shape(config={**SHAPES["thin"].config, "num_hidden_layers": 2}, row_tokens=256, document_tokens=64)
TRAINED_SHARE = 0.6
LEARNING_RATE = 1e-4


@dataclass
class Taken:
    """What steps took, and what they computed."""

    losses: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def time(self, step: Callable[[], float]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.losses.append(step())
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(time.process_time() - cpu)

    def write(self, path: Path) -> None:
        import torch

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = torch.cuda.max_memory_allocated() // 1024 if torch.cuda.is_available() else peak
        path.write_text(json.dumps({**vars(self), "peak_mib": round(peak / 1024)}))


def document_lengths(shape: Shape, number: int) -> list[int]:
    """Return the lengths of a row's documents, from a quarter to four times the usual one; there is no padding."""
    import numpy as np

    usual = shape.document_tokens
    generator = np.random.default_rng(number)
    enough = 64 + 4 * shape.row_tokens // usual
    drawn = np.clip(generator.lognormal(np.log(usual), 0.5, size=enough), usual / 4, usual * 4).astype(int)
    ends = np.minimum(np.cumsum(drawn), shape.row_tokens)
    lengths: list[int] = np.diff(ends, prepend=0).tolist()
    return [length for length in lengths if length]


def batch_of(shape: Shape, number: int) -> Any:
    """Return a micro batch: the first 40 % of each document are its prompt, the rest is trained."""
    import torch

    from training.step.batches import micro_batch_of

    lengths = [document_lengths(shape, number * shape.rows + row) for row in range(shape.rows)]
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(2, shape.config["vocab_size"], (shape.rows, shape.row_tokens), generator=generator)
    masks = [
        torch.cat([torch.arange(length) >= max(1, round(length * (1 - TRAINED_SHARE))) for length in row])
        for row in lengths
    ]
    return micro_batch_of(ids, torch.stack(masks), lengths, index=number)


def tokens_of_step(shape: Shape, step: int, world: World) -> int:
    """Return how many tokens the rows of all ranks train."""
    numbers = range(step * world.size, (step + 1) * world.size)
    return sum(len(batch_of(shape, number).trained.targets) for number in numbers)


def labels_of(batch: Any) -> Any:
    return batch.input_ids.masked_fill(~batch.loss_mask, -100)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a rank is to measure."""

    world: World
    shape: Shape
    precision: Any
    steps: int

    def batch(self, step: int) -> Any:
        return batch_of(self.shape, step * self.world.size + self.world.rank)
