"""What two runs must have in common to the bit."""

from __future__ import annotations

import json
from typing import Any

from training.checkpoint_files import newest_checkpoint

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
