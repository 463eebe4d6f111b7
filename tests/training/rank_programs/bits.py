"""What two runs must have in common to the bit, read from what they left."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from training.checkpoints.layout import newest_checkpoint, read_commit, stored_state

EXACT = ("step", "loss", "gradient_norm", "learning_rate", "trained_tokens")


def exact(run: Any) -> list[list[Any]]:
    return [[line[key] for key in EXACT] for line in run.metrics()]


def weights(run: Any) -> dict[str, tuple[Any, bytes]]:
    """Return the last checkpoint's files, each as its header, whose keys are in no order, and its tensors' bytes."""
    found = {}
    for path in newest_checkpoint(run.paths.checkpoints).glob("*.safetensors"):
        content = path.read_bytes()
        first = 8 + int.from_bytes(content[:8], "little")
        found[path.name] = (json.loads(content[8:first]), content[first:])
    return found


def read_weights(folder: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Return whole fp32 master weights of a committed checkpoint; `shapes` chooses which."""
    with stored_state(folder, read_commit(folder)) as state:
        return {
            name: state.read(f"master.{name}", 0, torch.empty(math.prod(shape))).reshape(tuple(shape))
            for name, shape in shapes.items()
        }
