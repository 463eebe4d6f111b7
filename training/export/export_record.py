"""What an export was made from, written in the folder with it: the checkpoint, the files and their digests.

An export appears in one rename after it was verified, so a folder with this record holds a verified export. So does a
folder that was made from an export (int8, int4, GGUF); its record also says how it was made and what was measured.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.disk.atomic_files import sha256_of, write_json
from cluster.errors import CheckpointError
from cluster.paths import CHECKPOINT_FOLDER, COMMIT_FILE

if TYPE_CHECKING:
    from training.checkpoints.layout import Commit  # which imports torch: seconds that `push` does not need

RECORD = "shardline.json"
FORMAT_VERSION = 1
WEIGHT_FILES = (".safetensors", ".gguf")
LOADED_FILES = (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt", ".py")  # what a loader may look for


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """`checkpoint` is the digest of the commit file; `files` has each file's bytes and sha256.

    `made` says how a folder was made from the export; None for the export itself.
    """

    version: int = FORMAT_VERSION
    step: int
    checkpoint: str
    files: dict[str, dict[str, Any]]
    made: dict[str, Any] | None = None

    @property
    def weight_bytes(self) -> int:
        return sum(int(facts["bytes"]) for name, facts in self.files.items() if name.endswith(WEIGHT_FILES))


def write_record(folder: Path, commit: Commit) -> ExportRecord:
    """Write the record of a folder that is complete otherwise."""
    return save(folder, ExportRecord(step=commit.step, checkpoint=commit.digest, files=files_of(folder)))


def write_derived_record(folder: Path, source: ExportRecord, made: dict[str, Any]) -> ExportRecord:
    """Write the record of a folder that was made from an export and is complete otherwise."""
    files = files_of(folder)
    return save(folder, ExportRecord(step=source.step, checkpoint=source.checkpoint, files=files, made=made))


def save(folder: Path, record: ExportRecord) -> ExportRecord:
    write_json(folder / RECORD, {key: value for key, value in asdict(record).items() if value is not None})
    return record


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return bytes and sha256 of every file of a folder, by relative path, without the record."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    named.pop(RECORD, None)
    return {name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in named.items()}


def read_record(folder: Path) -> ExportRecord:
    """Return an export's record. Raises CheckpointError without one, which exports of earlier versions have not."""
    path = folder / RECORD
    again = "run `shardline export RUN.yaml`"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no exported model here; {again} first")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format version {values['version']}, this program reads {FORMAT_VERSION}; {again} again"
            )
        return ExportRecord(**values)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: missing, so which checkpoint this is, and whether it was verified, is unknown; {again} again"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); {again} again") from None


def newer_step(record: ExportRecord, checkpoints: Path) -> int | None:
    """Return the step of the newest checkpoint if the export is of an older one, else None."""
    folders = checkpoints.glob(f"*/{COMMIT_FILE}")
    steps = [int(match[1]) for path in folders if (match := CHECKPOINT_FOLDER.fullmatch(path.parent.name))]
    newest = max(steps, default=record.step)
    return newest if newest > record.step else None


def verified_record(folder: Path, checkpoints: Path) -> ExportRecord:
    """Return the record of an export that still is what was verified, and of the newest checkpoint.

    Reads every byte. Raises CheckpointError otherwise.
    """
    record = read_record(folder)
    newest = newer_step(record, checkpoints)
    if newest is not None:
        raise CheckpointError(
            f"{folder}: is of step {record.step}, and there is a checkpoint of step {newest}; run `shardline export"
            " RUN.yaml` first"
        )
    check_unchanged(folder, record)
    return record


def check_unchanged(folder: Path, record: ExportRecord) -> None:
    """Raise CheckpointError if a file of the record changed, or a loader would find one that is not in it.

    Others, such as a README.md for the Hub, may be added.
    """
    found = files_of(folder)
    again = "run `shardline export RUN.yaml` again"
    for name in sorted(record.files.keys() | found.keys()):
        if name not in found:
            raise CheckpointError(f"{folder / name}: missing since the export was verified; {again}")
        if name not in record.files:
            if name.endswith(LOADED_FILES) and "/" not in name:
                raise CheckpointError(f"{folder / name}: was not written by the export; remove it, or {again}")
        elif found[name] != record.files[name]:
            raise CheckpointError(f"{folder / name}: changed since the export was verified; {again}")
