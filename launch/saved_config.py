"""The configuration in a run's folder: valid from any working directory, and after the folder was moved or copied.

`config.yaml` says `folder: .`, as the folder that holds it is the run. A path that begins with `./` is inside of the
run and moves with it; every other path is absolute. Sources keep their names, which the data's manifest has too; the
folder that a name is relative to is saved beside it.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config_loading import dump_yaml, merged, parse_override, read_yaml, validate
from cluster.disk.atomic_files import write_text
from cluster.errors import CheckpointError, ConfigError
from cluster.paths import INSIDE, RunPaths
from data_prep.shards import read_manifest
from launch.config import RunConfig

if TYPE_CHECKING:
    from training.models.source import ModelOrigin

HERE = "."  # the value of `folder` in a saved configuration
PATHS = (("data", "folder"), ("data", "chat_template"), ("train", "deepspeed"))
FOLDERS_OR_HUB_IDS = (("data", "tokenizer", "path"), ("model", "path"))
NO_PATHS = ("plain", "chatml")  # the templates of those names


def load_run(named: Path, overrides: Sequence[str] = (), start_from: Path | None = None) -> RunConfig:
    """Return the run that a YAML file or a run's folder names; a named folder is the run whatever its file says.

    With `start_from`, the new run starts from the exported weights of that run, on its shards.
    Raises ConfigError with every problem of the configuration, CheckpointError if the other run has no export.
    """
    folder = folder_named(named)
    path = named if folder is None else saved_file(folder)
    values = read_yaml(path) if folder is None else located(read_yaml(path), folder)
    other = None if start_from is None else load_run(start_from)
    if other is not None:
        values = started_from(values, other)
    changes: dict[str, Any] = {}
    for override in overrides:
        changes = merged(changes, parse_override(override))
    if folder is not None and "folder" in changes:
        raise ConfigError(f"-o folder: the run was named by its folder: {folder}; name a YAML file to choose another")
    run = validate(RunConfig, merged(values, changes), source=str(path))
    if other is not None and run.paths.root.resolve() == other.paths.root.resolve():
        raise ConfigError(f"--from {start_from}: the same run; give the new run another `name` or `folder`")
    return run


def load(options: argparse.Namespace) -> RunConfig:
    """Return the run that a command's arguments name."""
    return load_run(options.run, options.overrides, getattr(options, "from_run", None))


def folder_named(named: Path) -> Path | None:
    """Return the run's folder if it was named, either itself or by the configuration saved in it."""
    if named.is_dir():
        return named
    is_saved = named.name == RunPaths(Path()).config.name and named.is_file()
    return named.parent if is_saved and read_yaml(named).get("folder") == HERE else None


def saved_file(folder: Path) -> Path:
    path = RunPaths(folder).config
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file, so this folder holds no run yet; `prepare` and `train` write it once they have"
            " accepted the configuration: name the YAML file instead"
        )
    return path


def save_config(run: RunConfig) -> None:
    """Save the configuration in the run's folder, which can then be named instead of the YAML file."""
    write_text(run.paths.config, saved_text(run))


def saved_text(run: RunConfig) -> str:
    """Return the configuration as it is saved in the run's folder."""
    root = run.paths.root
    values = run.model_dump(mode="json")
    values["folder"] = HERE
    change(values, PATHS, lambda text: text if text in NO_PATHS else saved_path(text, root))
    change(
        values, FOLDERS_OR_HUB_IDS, lambda text: saved_path(text, root) if Path(text).expanduser().exists() else text
    )
    for source in sources_of(values):
        if source["path"] and not Path(source["path"]).expanduser().is_absolute():
            source["relative_to"] = saved_path(source["relative_to"] or HERE, root)
    return dump_yaml(values)


def absolute_values(run: RunConfig) -> dict[str, Any]:
    """Return the configuration with absolute paths and the shards named, for a YAML file in any folder."""
    values = run.model_dump(mode="json")
    values["data"]["folder"] = str(run.shards)
    change(values, PATHS, lambda text: text if text in NO_PATHS else absolute(text))
    change(values, FOLDERS_OR_HUB_IDS, lambda text: absolute(text) if Path(text).expanduser().exists() else text)
    for source in sources_of(values):
        if source["path"] and not Path(source["path"]).expanduser().is_absolute():
            source["relative_to"] = absolute(source["relative_to"] or HERE)
    return values


def absolute(text: str) -> str:
    return os.path.abspath(Path(text).expanduser())  # noqa: PTH100  (resolve would follow links, which may move)


def located(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a saved configuration with its paths resolved against `folder`; of others, only `folder` is set."""
    if values.get("folder") == HERE:
        change(values, (*PATHS, *FOLDERS_OR_HUB_IDS), lambda text: str(RunPaths(folder).located(text)))
        for source in sources_of(values):
            change(source, (("relative_to",),), lambda text: str(RunPaths(folder).located(text)))
    return {**values, "folder": str(folder)}


def sources_of(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the sources of a configuration that is not validated yet."""
    data = values.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    return [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []


def saved_path(text: str, root: Path) -> str:
    """Return a path as it is saved: relative to the run if it is inside of it, else absolute."""
    path = Path(absolute(text))
    if path.resolve().is_relative_to(root.resolve()):
        return f"{INSIDE}{path.resolve().relative_to(root.resolve()).as_posix()}"
    return str(path)


def change(values: dict[str, Any], keys: Sequence[tuple[str, ...]], new: Callable[[str], str]) -> None:
    """Replace the texts under these keys with `new` of them; keys that are absent are skipped."""
    for *sections, key in keys:
        section: Any = values
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = new(section[key])


def started_from(values: dict[str, Any], other: RunConfig) -> dict[str, Any]:
    """Return a configuration whose model is another run's export and whose data is that run's shards.

    Keys of `data` that it does not set are the other run's.
    """
    if not (other.paths.export / "config.json").is_file():
        raise CheckpointError(
            f"{other.paths.export}: no exported model to start from (an adapter alone is not one); first:"
            f" shardline export {shlex.quote(str(other.paths.root))}"
        )
    own = values.get("data") or {}
    if not isinstance(own, dict):
        raise ConfigError(f"data: expected keys and values, got {own!r}")
    data = merged(other.model_dump(mode="json")["data"], own)
    data |= {"folder": str(other.shards), "tokenizer": None}  # an exported model brings its own
    return {**values, "data": data, "model": {"path": str(other.paths.export)}}


def origin_of(run: RunConfig) -> ModelOrigin:
    """Return the model or the settings that the run's training starts from."""
    from training.models.source import find_model

    return find_model(run.model, run.shards, read_manifest(run.shards))
