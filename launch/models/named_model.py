"""The model that `generate`, `chat` and `serve` speak with: a run's export, or any Hugging Face folder."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import CheckpointError, ConfigError, DataError
from cluster.model_files import ADAPTER_CONFIG, CONFIG, found_folder, read_settings
from cluster.paths import RunPaths
from data_prep.shards import MANIFEST, read_manifest, template_digest
from data_prep.shards.tokenizer_files import open_tokenizer, vocabulary_size
from launch.config import RunConfig
from launch.saved_config import load, load_run, origin_of


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
        run = run_of(options.run)
        as_chat = None if run is None else read_manifest(run.shards).conversational
        return NamedModel(folder=options.run, name=options.run.resolve().name, as_chat=as_chat, run=run)
    if options.run.is_dir() and not RunPaths(options.run).config.exists():
        raise ConfigError(
            f"{options.run}: neither a run's folder nor a model's: it holds no {RunPaths(options.run).config.name} and"
            f" no {CONFIG}; name a run, its YAML file, or a Hugging Face folder"
        )
    run = load(options)
    if not is_model(run.paths.export):
        raise CheckpointError(f"{run.paths.export}: no exported model here; run `shardline export RUN.yaml` first")
    return NamedModel(folder=run.paths.export, name=run.name, as_chat=read_manifest(run.shards).conversational, run=run)


def run_of(folder: Path) -> RunConfig | None:
    """Return the run that wrote an export, or a form of it such as export-int8, in its own folder.

    None for a model from elsewhere, and for one whose run or shards are not there.
    """
    from training.export.export_record import RECORD

    root = folder.resolve().parent
    if not (folder / RECORD).is_file() or not RunPaths(root).config.is_file():
        return None
    run = load_run(root)
    return run if (run.shards / MANIFEST).is_file() else None


def is_model(folder: Path) -> bool:
    """Return whether a folder holds a model, or an adapter for one."""
    return any((folder / name).is_file() for name in (CONFIG, ADAPTER_CONFIG))


def open_named(named: NamedModel) -> tuple[Any, Any]:
    """Load the model and its tokenizer. Raises CheckpointError unless its chat template is that of the run's rows."""
    from training.generate.loading import load_export

    model, tokenizer = load_export(named.folder)
    if named.run is not None:
        check_template(tokenizer.chat_template, named.run.shards, named.folder)
    return model, tokenizer


def check_template(exported: Any, shards: Path, folder: Path) -> None:
    """Raise unless an export's chat template is that of the shards, but for the markers that only training reads."""
    from training.export.export_template import plain_template

    trained = open_tokenizer(shards / "tokenizer").chat_template
    if template_digest(trained) != read_manifest(shards).template_digest:
        raise DataError(
            f"{shards / 'tokenizer'}: its chat template is not the one that the rows were made with; run"
            " `shardline prepare RUN.yaml` again"
        )
    if exported != (plain_template(trained) if isinstance(trained, str) else trained):
        raise CheckpointError(
            f"{folder}: its chat template is not the one that the run was trained with, so the model would see turns"
            " that it does not know; run `shardline export RUN.yaml` again"
        )


def open_base(named: NamedModel, tokenizer: Any) -> Any:
    """Load the model that the named one was trained from. Raises ConfigError if there is none, or it is not known."""
    from training.generate.loading import load_model

    if named.run is not None:
        origin = origin_of(named.run)
        if origin.folder is None:
            raise ConfigError("--compare: the run trained a new model (`model.new`): there is no base to compare with")
        return origin.enlarge(load_model(origin.folder), named.run.seed)
    path = read_settings(named.folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not path:
        raise ConfigError(
            f"--compare: {named.folder} does not say what it was trained from; name the run, by its YAML or folder"
        )
    base = load_model(found_folder(path, ADAPTER_CONFIG, weights=True))
    if vocabulary_size(tokenizer) > base.get_input_embeddings().num_embeddings:
        raise ConfigError(
            f"--compare: the base {path} lacks embeddings for tokens of {named.folder}; name the run instead"
        )
    return base


def speaks_as_chat(named: NamedModel, tokenizer: Any) -> bool:
    """Return whether prompts are a user's messages; else the model continues text."""
    return named.as_chat is not False and bool(tokenizer.chat_template)
