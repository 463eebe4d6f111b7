"""What is published: an export, and what is known of the run that made it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster.config_loading import read_yaml
from cluster.errors import CheckpointError, ConfigError
from cluster.model_files import ADAPTER_CONFIG, HUB_NAME, looks_local, read_settings
from cluster.paths import COMMIT_FILE, RunPaths
from data_prep.shards import MANIFEST, Manifest, read_manifest
from training.export.export_record import ExportRecord
from training.reporting.run_state import RunState, read_record, read_state
from training.reporting.status import is_stale


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run that an export came from. `sources` are the `data.sources` of its configuration."""

    name: str
    paths: RunPaths
    shards: Path
    sources: Sequence[Mapping[str, Any]]
    base: str | None
    """`model.path`: a folder or a name of the Hub; None for a new model."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An export to be published under a name of the Hub, with what its owner says of it."""

    repo: str
    folder: Path
    record: ExportRecord
    run: Run | None
    base_id: str | None
    """The base model's name on the Hub; None if it has none, or is not known."""
    license: str | None = None

    @property
    def is_adapter(self) -> bool:
        return (self.folder / ADAPTER_CONFIG).is_file()

    @property
    def is_gguf(self) -> bool:
        return any(name.endswith(".gguf") for name in self.record.files)

    @cached_property
    def manifest(self) -> Manifest | None:
        """The manifest of the data that the run was trained on; None if it was removed since."""
        is_there = self.run is not None and (self.run.shards / MANIFEST).is_file()
        return read_manifest(self.run.shards) if self.run is not None and is_there else None

    @property
    def is_chat(self) -> bool:
        """Whether the model answers messages, rather than continuing text."""
        if self.manifest is not None:
            return self.manifest.conversational
        return (self.folder / "chat_template.jinja").is_file()

    @cached_property
    def state(self) -> RunState | None:
        """The run up to the exported step; None without metrics. Raises CheckpointError if they are of another run."""
        state = read_state(self.run.paths) if self.run else None
        if self.run is None or state is None or not state.lines:
            return None
        check_same_training(self.run.paths, self.record, state)
        return dataclasses.replace(
            state,
            lines=[line for line in state.lines if line["step"] <= self.record.step],
            validation={step: loss for step, loss in state.validation.items() if step <= self.record.step},
        )

    @cached_property
    def evaluation(self) -> dict[str, Any] | None:
        """The evaluation of this very export; None if there is none, or it is of other weights or does not tell."""
        found = read_record(self.run.paths.beside(self.run.paths.evaluation, self.folder)) if self.run else None
        if found is None or not (found.get("export") or {}).get("digest") or is_stale(found, self.folder):
            return None
        return found

    @cached_property
    def certificate(self) -> dict[str, Any] | None:
        """What `verify-resume` found on the data of this run; None if it was not run, or on other data."""
        found = read_record(self.run.paths.certificate) if self.run else None
        if found is None or self.manifest is None or found.get("data") != self.manifest.content_digest:
            return None
        return found

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """The configuration that the run was trained with."""
        return read_yaml(self.run.paths.config) if self.run and self.run.paths.config.is_file() else {}


def check_same_training(paths: RunPaths, record: ExportRecord, state: RunState) -> None:
    """Raise CheckpointError if the run's folder now holds another training than the one that was exported."""
    commit = paths.checkpoints / f"step-{record.step:06d}" / COMMIT_FILE
    now = json.loads(commit.read_text(encoding="utf-8")).get("digest") if commit.is_file() else record.checkpoint
    if now != record.checkpoint or state.step < record.step:
        raise CheckpointError(
            f"{paths.export}: is of step {record.step} of another training than the one in {paths.root}, so the card"
            " would describe the wrong one; run `shardline export RUN.yaml` again"
        )


def base_of(folder: Path, run: Run | None, given: str | None) -> str | None:
    """Return the base model's name on the Hub: the one that was given, or the run's or adapter's own if it is one.

    Raises ConfigError if an adapter names its base by a folder of this machine, where nobody else can load it from.
    """
    if given is not None:
        if not HUB_NAME.fullmatch(given):
            raise ConfigError(f"--base: {given!r} is not a name of the Hub, which are like OWNER/NAME")
        return given
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    told = read_settings(folder / ADAPTER_CONFIG).get("base_model_name_or_path") if is_adapter else run and run.base
    if not told:
        return None
    if HUB_NAME.fullmatch(told) and not looks_local(told) and not Path(told).is_dir():
        return str(told)
    if is_adapter:
        raise ConfigError(
            f"{folder / ADAPTER_CONFIG}: the adapter's base is a folder of this machine ({told}), where others cannot"
            " load it from; name it on the Hub with --base OWNER/NAME, or export with `export.lora: merged`"
        )
    return None
