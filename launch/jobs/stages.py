"""Which stages of a run are still to be done: prepare, train, export, evaluate."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import digest_of
from cluster.errors import CheckpointError, ConfigError, DataError
from cluster.submission.config import STAGES
from data_prep.shards import MANIFEST, check_shards, read_manifest
from launch.config import RunConfig
from launch.models.named_model import is_model
from launch.runs.check import check_fits
from launch.saved_config import absolute_values, load_run
from training.export.export_record import newer_step, read_record
from training.plan import steps_of
from training.reporting.run_state import read_record as read_json
from training.reporting.status import is_stale
from training.run_identity import committed_identity

PREPARED_WITH = ("data", "model", "seed")  # the keys that decide what is in the shards
SPEED_ONLY = ("workers", "executor")  # of `data`


def stages_to_do(run: RunConfig, only: str | None = None, start: str | None = None) -> dict[str, str]:
    """Return the stages that a submission consists of, each with why it is needed.

    What follows a stage that is not done is done again. `only` names one stage, `start` the first one: they are done
    whether they were done before or not. Raises ConfigError if what they start from is not there.
    """
    asked = only or start
    if asked is not None:
        check_can_start(run, asked, "--only" if only else "--from")
        return {asked: "asked for", **({} if only else following(asked))}
    for stage in STAGES:
        reason = MISSING[stage](run)
        if reason:
            if stage == "prepare":
                check_trains_on_it(run, reason)
            return {stage: reason, **following(stage)}
    return {}


def following(stage: str) -> dict[str, str]:
    return {later: f"after {before}" for before, later in pairwise(STAGES[STAGES.index(stage) :])}


def check_can_start(run: RunConfig, stage: str, option: str) -> None:
    """Raise ConfigError if what a stage starts from is not there."""
    place = STAGES.index(stage)
    if stage == "train" and (reason := unprepared(run)):
        raise ConfigError(f"{option} train: {reason}; use --from prepare")
    if stage == "export" and committed_identity(run.paths.checkpoints) is None:
        raise ConfigError(f"{option} export: {run.paths.checkpoints} has no checkpoint; use --from train")
    if stage == "evaluate" and not is_model(run.paths.export):
        raise ConfigError(
            f"{option} evaluate: {run.paths.export} has no exported model; use --from {STAGES[place - 1]}"
        )


def check_trains_on_it(run: RunConfig, reason: str) -> None:
    """Raise ConfigError if other data would be prepared for a run that has been trained: it could not resume."""
    found = committed_identity(run.paths.checkpoints)
    if found is not None and (run.shards / MANIFEST).exists():
        raise ConfigError(
            f"{run.paths.root}: {reason}; but the run has a checkpoint of step {found[2]:,}, which resumes on the same"
            " data only: restore the settings, or give the new run another `name`; if the"
            " change has no effect on the data, use --from train"
        )


def unprepared(run: RunConfig) -> str:
    """Return why the data is to be prepared; empty if the shards fit the configuration.

    Files of the corpus that have changed are seen by `shardline prepare` only.
    """
    if not (run.shards / MANIFEST).exists():
        return f"{run.shards} has no prepared data"
    try:
        manifest = read_manifest(run.shards)
        check_fits(run, manifest)
        check_shards(run.shards, manifest.trained_from())
    except (ConfigError, DataError) as error:
        return str(error)
    if run.paths.config.exists() and run.shards.resolve().is_relative_to(run.paths.root.resolve()):
        before, now = prepared_with(load_run(run.paths.root)), prepared_with(run)
        changed = [key for key in now if before[key] != now[key]]
        if changed:
            return f"{', '.join(changed)} changed since the data was prepared"
    return ""


def prepared_with(run: RunConfig) -> dict[str, str]:
    """Return the digest of each key that decides what is in the shards."""
    values: dict[str, Any] = absolute_values(run)
    values["data"] = {key: value for key, value in values["data"].items() if key not in SPEED_ONLY}
    return {key: digest_of(values[key]) for key in PREPARED_WITH}


def untrained(run: RunConfig) -> str:
    """Return why the run is to be trained; empty if its last step is committed."""
    found = committed_identity(run.paths.checkpoints)
    steps = steps_of(run.train, read_manifest(run.shards).rows("train"))
    if found is None:
        return "no checkpoint yet"
    _, _, step = found
    return "" if step >= steps else f"the newest checkpoint is of step {step:,} of {steps:,}"


def unexported(run: RunConfig) -> str:
    """Return why the run is to be exported; empty if the export is of the newest checkpoint."""
    try:
        record = read_record(run.paths.export)
    except CheckpointError:
        return "no export yet"
    newest = newer_step(record, run.paths.checkpoints)
    return "" if newest is None else f"the export is of step {record.step:,}, the newest checkpoint of {newest:,}"


def unevaluated(run: RunConfig) -> str:
    """Return why the export is to be evaluated; empty if there is an evaluation of it."""
    evaluation = read_json(run.paths.evaluation)
    if evaluation is None:
        return "no evaluation yet"
    return "the evaluation is of an earlier export" if is_stale(evaluation, run.paths.export) else ""


MISSING: dict[str, Callable[[RunConfig], str]] = {
    "prepare": unprepared,
    "train": untrained,
    "export": unexported,
    "evaluate": unevaluated,
}


def scripts(stage: str) -> list[str]:
    """Return the script of a stage, with the words that precede the run."""
    launch = Path(__file__).resolve().parents[1]
    return [str(launch / f"{stage}.sh")] if stage in ("prepare", "train") else [str(launch / "run.sh"), stage]
