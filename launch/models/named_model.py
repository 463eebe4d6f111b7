"""The model that `generate`, `chat` and `serve` speak with: a run's export, or any Hugging Face folder."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import CheckpointError, ConfigError
from cluster.model_files import ADAPTER_CONFIG, CONFIG
from data_prep.shards import read_manifest
from launch.config import RunConfig
from launch.saved_config import load


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model to speak with. `as_chat`: prompts are a user's messages; None if the tokenizer's template decides.

    `run` is the run that it was exported from, None for a folder from elsewhere.
    """

    folder: Path
    name: str
    as_chat: bool | None
    run: RunConfig | None


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the arguments that name a model."""
    command.add_argument("run", type=Path, help="the run's YAML file or its folder, or a Hugging Face folder")
    command.add_argument(
        "-o", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a key of the YAML"
    )


def named_model(options: argparse.Namespace) -> NamedModel:
    """Return the model that a command's arguments name. Raises CheckpointError if the run has no export yet."""
    if is_model(options.run):
        if options.overrides:
            raise ConfigError(f"-o: {options.run} is a model, not a run: it has no YAML to override; remove -o")
        return NamedModel(folder=options.run, name=options.run.resolve().name, as_chat=None, run=None)
    run = load(options)
    if not is_model(run.paths.export):
        raise CheckpointError(f"{run.paths.export}: no exported model here; run `shardline export RUN.yaml` first")
    return NamedModel(folder=run.paths.export, name=run.name, as_chat=read_manifest(run.shards).conversational, run=run)


def is_model(folder: Path) -> bool:
    """Return whether a folder holds a model, or an adapter for one."""
    return any((folder / name).is_file() for name in (CONFIG, ADAPTER_CONFIG))
