"""DeepSpeed, without what it imports for its autotuner: where MLflow is installed, a sixth of a rank's start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """Have imports of a module fail meanwhile, as if it were not installed; one that is imported already stays."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with hidden("mlflow"):
    import deepspeed

__all__ = ["deepspeed"]
