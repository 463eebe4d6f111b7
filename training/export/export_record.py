"""What an export was made from, written in the folder with it: the checkpoint, the files and their digests.

An export appears in one rename after it was verified, so a folder with this record holds a verified export.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import sha256_of, write_json
from cluster.errors import CheckpointError
from training.checkpoints.layout import Commit, committed_folders, step_of

RECORD = "shardline.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """`checkpoint` is the digest of the commit file; `files` has each file's bytes and sha256."""

    version: int = FORMAT_VERSION
    step: int
    checkpoint: str
    files: dict[str, dict[str, Any]]


def write_record(folder: Path, commit: Commit) -> ExportRecord:
    """Write the record of a folder that is complete otherwise."""
    record = ExportRecord(step=commit.step, checkpoint=commit.digest, files=files_of(folder))
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


def newer_step(record: ExportRecord, checkpoints: Path) -> int | None:
    """Return the step of the newest checkpoint if the export is of an older one, else None."""
    folders = committed_folders(checkpoints)
    newest = step_of(folders[-1]) if folders else record.step
    return newest if newest > record.step else None
