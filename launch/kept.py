"""The configuration in a run's folder: right from any working directory, and wherever the folder was moved or copied.

`config.yaml` says `folder: .`, for the folder that it lies in is the run. A path in it that begins with `./` is inside
of the run and goes along with it; every other path is absolute. Sources keep their names, since the manifest of the
data has them, and beside each the folder that it is relative to.
"""

from __future__ import annotations

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

HERE = "."  # what `folder` says in a configuration that was kept
PATHS = (("data", "folder"), ("data", "chat_template"), ("train", "deepspeed"))
FOLDERS_OR_HUB_IDS = (("data", "tokenizer", "path"), ("model", "path"))
NO_PATHS = ("chatml",)  # the template of that name


def load_run(named: Path, overrides: Sequence[str] = (), start_from: Path | None = None) -> RunConfig:
    """Return the run that is named: by a YAML file, or by its folder, which then is the run whatever the file says.

    With `start_from`, another run, it begins from that one's exported weights on that one's shards.
    Raises ConfigError with every problem of the configuration, CheckpointError if the other run has no export.
    """
    folder = folder_named(named)
    path = named if folder is None else kept_file(folder)
    values = read_yaml(path) if folder is None else located(read_yaml(path), folder)
    other = None if start_from is None else load_run(start_from)
    if other is not None:
        values = begun_from(values, other)
    changes: dict[str, Any] = {}
    for override in overrides:
        changes = merged(changes, parse_override(override))
    if folder is not None and "folder" in changes:
        raise ConfigError(f"-o folder: the folder that was named is the run: {folder}; name a YAML file to choose one")
    run = validate(RunConfig, merged(values, changes), source=str(path))
    if other is not None and run.paths.root.resolve() == other.paths.root.resolve():
        raise ConfigError(f"--from {start_from}: is this run itself; give the new run another `name` or `folder`")
    return run


def folder_named(named: Path) -> Path | None:
    """Return the run's folder if it was named, itself or by the configuration that is kept in it."""
    if named.is_dir():
        return named
    is_kept = named.name == RunPaths(Path()).config.name and named.is_file()
    return named.parent if is_kept and read_yaml(named).get("folder") == HERE else None


def kept_file(folder: Path) -> Path:
    path = RunPaths(folder).config
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file, so this folder holds no run yet; `prepare` and `train` write it when they have"
            " accepted the configuration: name the YAML file instead"
        )
    return path


def keep_config(run: RunConfig) -> None:
    """Keep the configuration in the run's folder, which can then be named instead of the YAML file."""
    write_text(run.paths.config, kept_text(run))


def kept_text(run: RunConfig) -> str:
    """Return the configuration as the run's folder keeps it."""
    root = run.paths.root
    values = run.model_dump(mode="json")
    values["folder"] = HERE
    change(values, PATHS, lambda text: text if text in NO_PATHS else kept_path(text, root))
    change(values, FOLDERS_OR_HUB_IDS, lambda text: kept_path(text, root) if Path(text).expanduser().exists() else text)
    for source in sources_of(values):
        if source["path"] and not Path(source["path"]).expanduser().is_absolute():
            source["relative_to"] = kept_path(source["relative_to"] or HERE, root)
    return dump_yaml(values)


def located(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a kept configuration for the place where its folder is now; one of another kind but for its folder."""
    if values.get("folder") == HERE:
        change(values, (*PATHS, *FOLDERS_OR_HUB_IDS), lambda text: str(RunPaths(folder).located(text)))
        for source in sources_of(values):
            change(source, (("relative_to",),), lambda text: str(RunPaths(folder).located(text)))
    return {**values, "folder": str(folder)}


def sources_of(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the sources of a configuration that was not validated yet."""
    data = values.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    return [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []


def kept_path(text: str, root: Path) -> str:
    """Return a path as it is kept: inside of the run relative to it, elsewhere absolute."""
    path = Path(os.path.abspath(Path(text).expanduser()))  # noqa: PTH100  (resolve would follow links, which may move)
    if path.resolve().is_relative_to(root.resolve()):
        return f"{INSIDE}{path.resolve().relative_to(root.resolve()).as_posix()}"
    return str(path)


def change(values: dict[str, Any], keys: Sequence[tuple[str, ...]], new: Callable[[str], str]) -> None:
    """Replace the texts at these places, where there are some."""
    for *sections, key in keys:
        section: Any = values
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = new(section[key])


def begun_from(values: dict[str, Any], other: RunConfig) -> dict[str, Any]:
    """Return a configuration whose model is another run's export and whose data are that run's shards.

    What it does not say of the data, the other run's configuration says, since these are its shards.
    """
    if not (other.paths.export / "config.json").is_file():
        raise CheckpointError(
            f"{other.paths.export}: no exported model to begin from (an adapter alone is none); first: shardline export"
            f" {shlex.quote(str(other.paths.root))}"
        )
    own = values.get("data") or {}
    if not isinstance(own, dict):
        raise ConfigError(f"data: expected keys and values, got {own!r}")
    data = merged(other.model_dump(mode="json")["data"], own)
    data |= {"folder": str(other.shards), "tokenizer": None}  # an exported model brings its own
    return {**values, "data": data, "model": {"path": str(other.paths.export)}}


def origin_of(run: RunConfig) -> ModelOrigin:
    """Return what the run's model starts from."""
    from training.models.source import find_model

    return find_model(run.model, run.shards, read_manifest(run.shards))
