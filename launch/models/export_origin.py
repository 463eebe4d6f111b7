"""Whether a folder that was named is a form of the run's export, as far as its shardline.json and the run can tell."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import CheckpointError
from cluster.paths import CHECKPOINT_FOLDER, COMMIT_FILE, RunPaths
from cluster.wording import count_of

if TYPE_CHECKING:
    from training.export.export_record import ExportRecord


def require_own(paths: RunPaths, folder: Path) -> None:
    """Raise CheckpointError if a folder is certain to be exported from another run; see doubt_of for the others."""
    from training.export.export_record import RECORD, read_record

    if not (folder / RECORD).is_file():
        return
    record = read_record(folder)
    why = "" if is_known(paths, record) else sign_of_another(paths, folder, record)
    if why:
        raise CheckpointError(
            f"--export {folder}: {form_of(record)} of step {record.step} of another run than {paths.root}: {why};"
            f" {what_to_do(paths, folder)}"
        )


def doubt_of(paths: RunPaths, folder: Path) -> str:
    """Return why it is not known that a folder was exported from this run; "" if it is known."""
    from training.export.export_record import RECORD, read_record

    if not (folder / RECORD).is_file():
        return f"{folder} has no {RECORD}, so whether it is of this run, and of which step, is not known"
    record = read_record(folder)
    if is_known(paths, record):
        return ""
    return (
        f"{folder} is of step {record.step}, whose checkpoint is no longer in {paths.checkpoints}, so whether it is of"
        " this run is not known"
    )


def is_known(paths: RunPaths, record: ExportRecord) -> bool:
    """Return whether the run has the checkpoint, perhaps superseded by a rollback, or an export of the same one."""
    commits = [*paths.checkpoints.glob(f"*/{COMMIT_FILE}"), *paths.checkpoints.glob(f"*/*/{COMMIT_FILE}")]
    return record.checkpoint in {digest_of(path) for path in commits} | {own.checkpoint for own in own_record(paths)}


def sign_of_another(paths: RunPaths, folder: Path, record: ExportRecord) -> str:
    """Return what shows that an export is of another run than this one, whose checkpoints do not include it; or ""."""
    from training.reporting.run_state import read_state

    steps = {own.step for own in own_record(paths)}
    steps |= {
        int(match[1])
        for path in paths.checkpoints.glob(f"*/{COMMIT_FILE}")
        if (match := CHECKPOINT_FOLDER.fullmatch(path.parent.name))
    }
    if record.step in steps:
        return f"the checkpoint of step {record.step} here is another one"
    state = read_state(paths)
    if state.lines and state.step < record.step:
        return f"this run has taken {count_of(state.step, 'step')}"
    other = run_around(paths, folder)
    return f"its checkpoint is that of {other.root}" if other is not None and is_known(other, record) else ""


def run_around(paths: RunPaths, folder: Path) -> RunPaths | None:
    """Return the run in whose folder an export lies; None if that is this run, or none."""
    root = folder.resolve().parent
    return RunPaths(root) if RunPaths(root).config.is_file() and root != paths.root.resolve() else None


def own_record(paths: RunPaths) -> list[ExportRecord]:
    """Return the record of the run's export, if it has one."""
    from training.export.export_record import RECORD, read_record

    return [read_record(paths.export)] if (paths.export / RECORD).is_file() else []


def digest_of(commit: Path) -> str | None:
    """Return the digest of a commit file; None if the file is damaged, which is told by those who read checkpoints."""
    try:
        values = json.loads(commit.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values.get("digest") if isinstance(values, dict) else None


def form_of(record: ExportRecord) -> str:
    kind = (record.made or {}).get("kind")
    return f"the {kind} form of an export" if kind else "an export"


def what_to_do(paths: RunPaths, folder: Path) -> str:
    """Return the commands for the run that the folder is of, where that is known, and for this one."""
    forms = sorted(path.name for path in paths.root.glob("export-*") if path.is_dir())
    own = f"for this run's export, remove --export{' or name ' + ' or '.join(forms) if forms else ''}"
    other = run_around(paths, folder)
    if other is None:
        return f"name the run that it is of, or, {own}"
    form = "" if folder.resolve() == other.export.resolve() else f" --export {shlex.quote(str(folder))}"
    return f"to score it: shardline evaluate {shlex.quote(str(other.root))}{form}; {own}"
