"""What an export was made from, written in the folder with it: the checkpoint, the files and their digests.

An export appears in one rename after it was verified, so a folder with this record holds a verified export.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import digest_of, sha256_of, write_json
from cluster.errors import CheckpointError
from training.checkpoints.layout import Commit, committed_folders, step_of

RECORD = "shardline.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """`checkpoint` is the digest of the commit file; `files` has each file's bytes and sha256.

    `made` says how a folder that was derived from another export was made, and what was measured; empty for an export.
    """

    version: int = FORMAT_VERSION
    step: int
    checkpoint: str
    files: dict[str, dict[str, Any]]
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The digest of the files alone: two exports of the same bytes have the same."""
        return digest_of({name: facts["sha256"] for name, facts in self.files.items()})

    @property
    def bytes(self) -> int:
        return sum(int(facts["bytes"]) for facts in self.files.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights alone."""
        return sum(
            int(facts["bytes"]) for name, facts in self.files.items() if name.endswith((".safetensors", ".gguf"))
        )


def write_record(folder: Path, commit: Commit) -> ExportRecord:
    """Write the record of a folder that is complete otherwise."""
    return save(folder, ExportRecord(step=commit.step, checkpoint=commit.digest, files=files_of(folder)))


def write_derived_record(folder: Path, source: ExportRecord, made: dict[str, Any]) -> ExportRecord:
    """Write the record of a folder that was made from an export."""
    files = files_of(folder)
    return save(folder, ExportRecord(step=source.step, checkpoint=source.checkpoint, files=files, made=made))


def save(folder: Path, record: ExportRecord) -> ExportRecord:
    write_json(folder / RECORD, asdict(record))
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


def check_unchanged(folder: Path, record: ExportRecord) -> None:
    """Raise CheckpointError unless the folder holds exactly the files of its record, byte for byte."""
    found = files_of(folder)
    for name in sorted(record.files.keys() | found.keys()):
        if name not in found:
            raise CheckpointError(f"{folder / name}: missing since the export was verified; export again")
        if name not in record.files:
            raise CheckpointError(f"{folder / name}: was not written by the export; remove it, or export again")
        if found[name] != record.files[name]:
            raise CheckpointError(f"{folder / name}: changed since the export was verified; export again")


def newer_step(record: ExportRecord, checkpoints: Path) -> int | None:
    """Return the step of the newest checkpoint if the export is of an older one, else None."""
    folders = committed_folders(checkpoints)
    newest = step_of(folders[-1]) if folders else record.step
    return newest if newest > record.step else None
