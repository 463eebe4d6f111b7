"""What the follower of the journal asks of a tracker, and the trackers by name."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

from cluster.errors import ConfigError
from training.tracking.records import Note, Point, Target


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is known of a tracker without importing its library.

    `settle_s` is how long after `send` the library has surely passed on what it got, so that a kill of this process
    cannot lose it. Comet offline keeps what it got in a temporary folder until it is closed.
    """

    library: str
    module: str
    can_purge: bool = False
    settle_s: float = 5.0


TRACKERS = {
    "tensorboard": Kind(library="tensorboard", module="training.tracking.to_tensorboard", can_purge=True, settle_s=0.0),
    "wandb": Kind(library="wandb", module="training.tracking.to_wandb"),
    "mlflow": Kind(library="mlflow", module="training.tracking.to_mlflow", settle_s=0.0),
    "trackio": Kind(library="trackio", module="training.tracking.to_trackio"),
    "comet": Kind(library="comet_ml", module="training.tracking.to_comet", settle_s=math.inf),
}


class Tracker(Protocol):
    """One run in a tracker. Making one opens it: a run that the tracker has already is continued."""

    look: str
    """What a person types, or opens, to see the run."""

    def purge(self, step: int, note: int) -> None:
        """Remove what was sent of later steps and of notes with a higher number, where the tracker can."""
        ...

    def send(self, points: Sequence[Point], notes: Sequence[Note]) -> None:
        """Send points, in the order of their steps, and notes."""
        ...

    def close(self) -> None:
        """Send what the library still holds, and let go of it."""
        ...


def is_installed(name: str) -> bool:
    spec = find_spec(TRACKERS[name].library)
    return spec is not None and spec.origin is not None  # a folder `wandb` where one works has a spec too, but no code


def missing_text(name: str) -> str:
    return f"tracker {name} needs {TRACKERS[name].library}: pip install -e '.[trackers]'"


def check_installed(name: str) -> None:
    """Raise ConfigError if a tracker's library is missing."""
    if not is_installed(name):
        raise ConfigError(missing_text(name))


def open_tracker(name: str, target: Target) -> Tracker:
    """Open the run in the tracker of this name."""
    opened: Tracker = importlib.import_module(TRACKERS[name].module).open_run(target)
    return opened
