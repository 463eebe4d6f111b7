"""What a run's checkpoints are on disk: which are whole, which is used, which are kept, and how they are removed.

    checkpoints/step-000500/
        master-00000-of-00002.safetensors ...      one file per rank: its span of each 'master.NAME', flat
        exp_avg-00000-of-00002.safetensors ...     the same of Adam's first moment
        exp_avg_sq-00000-of-00002.safetensors ...  and of its second
        commit.json                                written last: progress, identity, shapes, files and their spans
        keep                                       if a person wants it to stay: it is never removed
    checkpoints/set_aside/                         damaged ones, each with a reason.txt; nothing here is read again
    checkpoints/superseded/                        whole ones that a rollback has superseded; nothing here is read again
    checkpoints/*.partial                          being written, or being removed; swept at the next start

Needs neither ranks nor DeepSpeed.
"""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import PARTIAL, digest_of, fsync_path, publish, sha256_of, write_json, write_text
from cluster.errors import CheckpointError
from cluster.versions import versions
from training.checkpoints.shard_files import FileFacts, StoredState
from training.checkpoints.span_index import RankIndex
from training.run_identity import COMMIT, FOLDER
from training.train_state import TrainState

KEEP = "keep"
SET_ASIDE = "set_aside"
SUPERSEDED = "superseded"
OLD_SUPERSEDED = "left_behind"  # what runs of earlier versions call it
REASON = "reason.txt"
FORMAT_VERSION = 4  # 1: no skipped steps; 2: files written by torch.distributed.checkpoint, no digest; 3: no spans
READABLE_VERSIONS = (3, 4)


class DamagedError(CheckpointError):
    """A checkpoint that is not what was committed: an older one can take its place."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What a checkpoint's commit file says.

    `identity` is what a run must not change between two starts; `shapes` are those of the trained parameters; `spans`
    are the runs of equal spans (see span_index), by parameter; empty in version 3, where the files' headers have them.
    `digest` is over all the rest.
    """

    version: int = FORMAT_VERSION
    step: int
    progress: dict[str, Any]
    world_size: int
    identity: dict[str, Any]
    shapes: dict[str, list[int]]
    files: dict[str, dict[str, Any]]
    spans: dict[str, list[list[int]]] = field(default_factory=dict)
    written: str = ""
    versions: dict[str, Any] = field(default_factory=dict)  # of the code that wrote it; compared with nothing
    digest: str = field(default="")

    def resumed(self) -> TrainState:
        """Return the progress that the run resumes from."""
        return TrainState.from_record(self.progress)

    @property
    def bytes(self) -> int:
        return sum(int(facts["bytes"]) for facts in self.files.values())


def step_of(folder: Path) -> int:
    """Return the steps done that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("step-"))


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:06d}"


def candidate_folders(checkpoints: Path) -> list[Path]:
    """Return every folder with a checkpoint's name, oldest first."""
    found = [path for path in checkpoints.glob("step-*") if FOLDER.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def committed_folders(checkpoints: Path) -> list[Path]:
    """Return the checkpoints that were committed, oldest first."""
    return [path for path in candidate_folders(checkpoints) if (path / COMMIT).is_file()]


def newest_checkpoint(checkpoints: Path) -> Path:
    """Return the newest committed checkpoint, or raise CheckpointError."""
    found = committed_folders(checkpoints)
    if not found:
        raise CheckpointError(f"{checkpoints}: holds no checkpoint; run `shardline train RUN.yaml` first")
    return found[-1]


def read_commit(folder: Path) -> Commit:
    """Read a checkpoint's commit file and check the size of every file it lists.

    On one rank: each file is asked for. Raises as read_commit_file does.
    """
    commit = read_commit_file(folder)
    check_sizes(folder, commit, commit.files)
    return commit


def read_commit_file(folder: Path) -> Commit:
    """Read a checkpoint's commit file alone.

    Raises DamagedError for what was committed and is not whole any more, CheckpointError for another format version.
    """
    path = folder / COMMIT
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["version"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"{path}: not a commit file ({error})") from None
    if version not in READABLE_VERSIONS:
        raise CheckpointError(
            f"{path}: format version {version}, this program reads 3 and {FORMAT_VERSION}; resume with the program that"
            " wrote it, or give the run another name"
        )
    if digest_of({name: value for name, value in values.items() if name != "digest"}) != values.get("digest"):
        raise DamagedError(f"{path}: its digest does not match its content")
    commit = Commit(**{item.name: values[item.name] for item in fields(Commit) if item.name in values})
    if commit.step != step_of(folder):
        raise DamagedError(f"{path}: says step {commit.step}, the folder is {folder.name}")
    return commit


def check_sizes(folder: Path, commit: Commit, names: Iterable[str]) -> None:
    """Raise DamagedError for the first of these files that is missing or not of the size in the commit file."""
    for name in names:
        size, expected = file_size(folder / name), commit.files[name]["bytes"]
        if size != expected:
            found = "missing" if size is None else f"{size} bytes"
            raise DamagedError(f"{folder / name}: {found}, {COMMIT} says {expected} bytes")


def file_size(path: Path) -> int | None:
    """Return a regular file's size; None without one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def files_of_rank(commit: Commit, rank: int, world_size: int) -> list[str]:
    """Return the files that one of the loading ranks checks for all."""
    return list(commit.files)[rank::world_size]


def damaged_files(folder: Path, commit: Commit, names: Iterable[str]) -> list[str]:
    """Return what is wrong with these files of a checkpoint: not readable, or not the sha256 of the commit file."""
    damaged = []
    for name in names:
        try:
            if sha256_of(folder / name) != commit.files[name]["sha256"]:
                damaged.append(f"{folder / name}: its sha256 is not the one in {COMMIT}")
        except OSError as error:
            damaged.append(f"{folder / name}: cannot be read ({error.strerror})")
    return damaged


def verify(folder: Path, kind: str = "") -> Commit:
    """Check every byte of a checkpoint, or of its files of one kind; return its commit. Raises DamagedError."""
    commit = read_commit(folder)
    damaged = damaged_files(folder, commit, [name for name in commit.files if name.startswith(kind)])
    if damaged:
        raise DamagedError("\n  ".join(damaged))
    return commit


def stored_state(folder: Path, commit: Commit) -> StoredState:
    """Open a checkpoint's tensors; files are opened when they are wanted, if the commit says what each holds."""
    index = RankIndex(commit.spans, commit.world_size) if commit.spans else None
    return StoredState(folder, commit.files, index)


def commit_folder(partial: Path, final: Path, commit: Commit) -> None:
    """Make a folder of whole, durable files a checkpoint: the commit file, its digest, one rename."""
    values = asdict(commit)
    values["versions"] = versions()
    values["written"] = datetime.now(UTC).isoformat(timespec="seconds")
    values.pop("digest")
    write_json(partial / COMMIT, {**values, "digest": digest_of(values)})
    fsync_path(partial)
    publish(partial, final)


def files_record(files: Mapping[str, FileFacts]) -> dict[str, dict[str, Any]]:
    """Return the files' facts as a commit file lists them."""
    return {name: asdict(files[name]) for name in sorted(files)}


def first_difference(ours: dict[str, list[int]], theirs: dict[str, list[int]]) -> str:
    """Return the first parameter that is not in both, or not of the same shape."""
    return min(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def supersede(checkpoints: Path, before: int) -> None:
    """Move the checkpoints of step `before` and later ones where nothing reads them: the run goes back."""
    for folder in candidate_folders(checkpoints):
        if step_of(folder) >= before:
            set_aside(folder, f"the run went back to before step {before}", checkpoints / SUPERSEDED)


def set_aside(folder: Path, reason: str, place: Path | None = None) -> Path:
    """Move a damaged checkpoint where nothing reads it, with the reason beside it; return where it went."""
    place = place or folder.parent / SET_ASIDE
    place.mkdir(exist_ok=True)
    number = len(list(place.glob(f"{folder.name}*")))
    aside = place / (f"{folder.name}-{number}" if number else folder.name)
    folder.rename(aside)
    write_text(aside / REASON, reason + "\n")
    fsync_path(place)
    fsync_path(folder.parent)
    return aside


def set_aside_folders(checkpoints: Path) -> list[Path]:
    """Return the checkpoints that were set aside."""
    return sorted((checkpoints / SET_ASIDE).glob("step-*"))


def superseded_folders(checkpoints: Path) -> list[Path]:
    """Return the checkpoints that a rollback has superseded."""
    return [path for name in (SUPERSEDED, OLD_SUPERSEDED) for path in sorted((checkpoints / name).glob("step-*"))]


def sweep(checkpoints: Path) -> None:
    """Remove what killed processes left: checkpoints half written or half removed."""
    for path in checkpoints.glob(f"*{PARTIAL}"):
        shutil.rmtree(path)


def remove(folder: Path) -> None:
    """Remove a checkpoint so that no crash leaves a torn one: it loses its name first."""
    doomed = folder.with_name(f"{folder.name}.removed{PARTIAL}")
    folder.rename(doomed)
    fsync_path(folder.parent)
    shutil.rmtree(doomed)


def expired(folders: Sequence[Path], keep_last: int, keep_every_steps: int | None) -> list[Path]:
    """Return which of the checkpoints, given oldest first, may be removed.

    Not the last ones, those of every Nth step, those marked as kept, or the one with the lowest validation loss.
    """
    best = best_checkpoint(folders)
    return [
        folder
        for folder in folders[:-keep_last]
        if not (keep_every_steps and step_of(folder) % keep_every_steps == 0)
        and not (folder / KEEP).exists()
        and folder != best
    ]


def best_checkpoint(folders: Sequence[Path]) -> Path | None:
    """Return the checkpoint with the lowest validation loss; None if none has one."""
    losses = {folder: validation_loss(folder) for folder in folders}
    known = {folder: loss for folder, loss in losses.items() if loss is not None}
    return min(known, key=lambda folder: known[folder]) if known else None


def validation_loss(folder: Path) -> float | None:
    """Return the validation loss that a checkpoint was saved with; None if it has none or is damaged."""
    try:
        return read_commit(folder).resumed().validation_loss
    except CheckpointError:
        return None  # a start that wants to use it reports it as damaged and sets it aside
