"""What TensorBoard's own reader finds in a run's folder."""

from __future__ import annotations

from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from cluster.paths import RunPaths

EVERYTHING = {"scalars": 0, "tensors": 0}


def scalars(paths: RunPaths, tag: str) -> list[tuple[int, Any]]:
    """Return the steps and values of a tag, in the order in which the reader has them."""
    reader = EventAccumulator(str(paths.trackers / "tensorboard"), size_guidance=EVERYTHING)
    reader.Reload()
    return [(event.step, float(event.value)) for event in reader.Scalars(tag)]


def texts(paths: RunPaths, tag: str) -> list[str]:
    """Return the texts of a tag."""
    reader = EventAccumulator(str(paths.trackers / "tensorboard" / "events"), size_guidance=EVERYTHING)
    reader.Reload()
    return [tensor_util.make_ndarray(event.tensor_proto).item().decode() for event in reader.Tensors(tag)]
