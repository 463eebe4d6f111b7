"""Which settings two attempts at one run must share, and when its length may change. Needs no torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.errors import CheckpointError
from cluster.journal.records import last_step
from cluster.paths import CHECKPOINT_FOLDER, COMMIT_FILE, RunPaths
from cluster.wording import count_of
from data_prep.shards import Manifest
from data_prep.shards.attention_work import tells_work
from training.config import TrainConfig
from training.order import BY_WORK, IN_TURN
from training.plan import Schedule, make_schedule

Identity = Mapping[str, Any]

FOLDER, COMMIT = CHECKPOINT_FOLDER, COMMIT_FILE
LENGTH = ("train.epochs", "train.steps", "train.warmup_fraction")  # the only settings that a longer run may change


def committed_identity(checkpoints: Path) -> tuple[Path, Identity, int] | None:
    """Return the folder, identity and step of the newest checkpoint whose commit file can be read; None without one.

    This is the quick check before a launch: loading the checkpoint checks the rest of it.
    """
    found = [path for path in checkpoints.glob(f"step-*/{COMMIT}") if FOLDER.fullmatch(path.parent.name)]
    for path in sorted(found, key=lambda path: int(path.parent.name.removeprefix("step-")), reverse=True):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return path.parent, dict(values["identity"]), int(values["step"])
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return None


def trained_on_other_shards(paths: RunPaths, manifest: Manifest) -> str | None:
    """Return what to do about a run whose newest checkpoint was trained on other shards; None if it was not."""
    found = committed_identity(paths.checkpoints)
    if found is None or found[1].get("data") == manifest.content_digest:
        return None
    return (
        f"{found[0]} was trained on other shards than there are now. To resume it, prepare again with the settings that"
        " it had, which gives the same bytes; for another run, set another name"
    )


def batches_of_run(paths: RunPaths) -> tuple[int, int] | None:
    """Return the rows of a global batch and the seed with which a run takes its steps; None if it never began.

    With the shards, they say which rows are in a step. Its newest checkpoint has them, or its plan once a step is
    taken: before, another start may have another one.
    """
    found = committed_identity(paths.checkpoints)
    try:
        if found is not None:
            return int(found[1]["train.global_batch_rows"]), int(found[1]["seed"])
        if not last_step(paths.metrics):
            return None
        plan = json.loads(paths.plan.read_text(encoding="utf-8"))
        return int(plan["global_batch_rows"]), int(plan["seed"])
    except (OSError, ValueError, TypeError, KeyError):  # no plan, or a damaged one: the run begins with its first step
        return None


def deal_of_run(paths: RunPaths, manifest: Manifest) -> int:
    """Return how a run deals its batches: as it began, by its newest checkpoint or its plan; a new one by work.

    Data that an older version prepared does not tell the work but in whole shards, of which each step would read as
    many as it has rows: a new run deals it in turn.

    Raises CheckpointError if it began in a way that this version does not know.
    """
    found = committed_identity(paths.checkpoints)
    deal = deal_in(found[1]) if found else deal_of_plan(paths.plan, BY_WORK if tells_work(manifest) else IN_TURN)
    if deal not in (IN_TURN, BY_WORK):
        raise CheckpointError(
            f"{paths.root}: its batches are dealt in way {deal}, this version knows {IN_TURN} and {BY_WORK}; resume it"
            " with the version that began it, or a later one"
        )
    return deal


def deal_in(record: Mapping[str, Any]) -> int:
    """Return how an identity or a plan says that batches are dealt."""
    return int(record.get("deal", IN_TURN))


def deal_of_plan(plan: Path, new: int) -> int:
    """Return how a run without a checkpoint deals its batches: as its plan says, else in the way `new`."""
    try:
        return deal_in(json.loads(plan.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError):  # none, or damaged: the run begins with its first step
        return new


def check_identity(
    then: Identity, now: Identity, folder: Path, *, steps_done: int = 0, rows: int | None = None
) -> None:
    """Raise CheckpointError, naming each change, if a checkpoint belongs to another run.

    A run may change its length if every step taken so far keeps its learning rate; checking this needs `rows`, the
    number of training rows.
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
        f"{folder}: {'cannot resume with another length' if problem else 'belongs to another run'}: {told}. {problem}"
        "A run resumes with the settings it started with: restore them; or start a new run from this run's weights and"
        f" shards: write new.yaml with another name, then: shardline export {root} && shardline train new.yaml --from"
        f" {root}"
    )


def changes(then: Identity, now: Identity) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of each key that differs."""
    return {key: (then.get(key), value) for key, value in now.items() if then.get(key) != value}


def length_problem(then: Identity, now: Identity, steps_done: int, rows: int) -> str | None:
    """Return why a run cannot resume with another length; None if it can."""
    before, after = schedule_of(then, rows), schedule_of(now, rows)
    if before is None or after is None:
        return "This version cannot reconstruct its learning rates. "
    if after.total_steps < steps_done:
        return f"It has already taken {count_of(steps_done, 'step')}, more than {after.total_steps:,}. "
    for step in range(steps_done):
        was, new = before.learning_rate(step), after.learning_rate(step)
        if was != new:
            return (
                f"Step {step + 1:,}, which is done, had learning rate {was:.4g}; in a run of {after.total_steps:,}"
                f" steps it would have {new:.4g}. {same_warmup(before, after)}"
            )
    return None


def same_warmup(before: Schedule, after: Schedule) -> str:
    """Return how to extend a run with a constant learning rate without changing its warm-up; empty if that fails."""
    fraction = round(before.warmup_steps / after.total_steps, 9)
    if before.kind != "constant" or round(fraction * after.total_steps) != before.warmup_steps:
        return ""
    warmup = count_of(before.warmup_steps, "step")
    return f"To extend it, keep its warm-up of {warmup}: -o train.warmup_fraction={fraction:g}. "


def schedule_of(identity: Identity, rows: int) -> Schedule | None:
    """Return the learning rates that an identity implies; None if this version cannot read its settings."""
    fields = {key.removeprefix("train."): value for key, value in identity.items() if key.startswith("train.")}
    try:
        return make_schedule(TrainConfig.model_validate(fields), rows)
    except ValidationError:
        return None
