"""What two starts of one run must have in common, and how its length may change on the way. Without torch."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.errors import CheckpointError
from training.config import TrainConfig
from training.plan import Schedule, make_schedule

Identity = Mapping[str, Any]

FOLDER = re.compile(r"step-(\d{6,})")  # a checkpoint's
COMMIT = "commit.json"
LENGTH = ("train.epochs", "train.steps", "train.warmup_fraction")  # what a longer run changes, and nothing else


def committed_identity(checkpoints: Path) -> tuple[Path, Identity, int] | None:
    """Return the newest checkpoint that says of which run it is, that, and its step; None without one.

    A quick look before anything is started: whether it is whole is found out when it is loaded.
    """
    found = [path for path in checkpoints.glob(f"step-*/{COMMIT}") if FOLDER.fullmatch(path.parent.name)]
    for path in sorted(found, key=lambda path: int(path.parent.name.removeprefix("step-")), reverse=True):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return path.parent, dict(values["identity"]), int(values["step"])
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return None


def check_identity(
    then: Identity, now: Identity, folder: Path, *, steps_done: int = 0, rows: int | None = None
) -> None:
    """Raise CheckpointError, naming each change, if a checkpoint belongs to another run.

    Another length is the same run if every step that was taken would have had the same learning rate; that can be told
    if the `rows` of the data are given.
    """
    changed = changes(then, now)
    if not changed:
        return
    problem = ""
    if rows is not None and set(changed) <= set(LENGTH):
        problem = length_problem(then, now, steps_done, rows) or ""
        if not problem:
            return
    told = "; ".join(f"{key} was {was!r}, is {new!r}" for key, (was, new) in changed.items())
    root = shlex.quote(str(folder.parent.parent))
    raise CheckpointError(
        f"{folder}: {'cannot go on with another length' if problem else 'belongs to another run'}: {told}. {problem}"
        "A run goes on as it began: put this back; or begin a new run from this one's weights, on its shards: write"
        f" new.yaml with another name, then: shardline export {root} && shardline train new.yaml --from {root}"
    )


def changes(then: Identity, now: Identity) -> dict[str, tuple[Any, Any]]:
    """Return what was and what is of each key that is not the same."""
    return {key: (then.get(key), value) for key, value in now.items() if then.get(key) != value}


def length_problem(then: Identity, now: Identity, steps_done: int, rows: int) -> str | None:
    """Return why a run cannot go on with another length; None if it can."""
    before, after = schedule_of(then, rows), schedule_of(now, rows)
    if before is None or after is None:
        return "This program cannot tell what its learning rates were. "
    if after.total_steps < steps_done:
        return f"It has taken {steps_done:,} steps already, more than {after.total_steps:,}. "
    for step in range(steps_done):
        was, new = before.learning_rate(step), after.learning_rate(step)
        if was != new:
            return (
                f"Step {step + 1:,}, which is done, had the learning rate {was:.4g}; in a run of {after.total_steps:,}"
                f" steps it has {new:.4g}. {same_warmup(before, after)}"
            )
    return None


def same_warmup(before: Schedule, after: Schedule) -> str:
    """Return how a run with a constant learning rate can be made longer after all."""
    fraction = round(before.warmup_steps / after.total_steps, 9)
    if before.kind != "constant" or round(fraction * after.total_steps) != before.warmup_steps:
        return ""
    return f"To train it on, keep its warm-up of {before.warmup_steps:,} steps: -o train.warmup_fraction={fraction:g}. "


def schedule_of(identity: Identity, rows: int) -> Schedule | None:
    """Return the learning rates of the run that an identity is of; None if it lacks something."""
    fields = {key.removeprefix("train."): value for key, value in identity.items() if key.startswith("train.")}
    try:
        return make_schedule(TrainConfig.model_validate(fields), rows)
    except ValidationError:
        return None
