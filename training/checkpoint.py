"""Checkpoints that exist only when they are whole: sharded safetensors, a commit file written last, one rename.

    checkpoints/step-000500/
        shard-00001-model-00001-of-00001.safetensors ...   one file a rank: its parts of master weights and moments
        commit.json                                        step, the run's identity, shapes, each file's size and sha256

The tensors are flat DTensors [numel], Shard(0), keyed 'master.NAME', 'exp_avg.NAME' and 'exp_avg_sq.NAME', read and
written by torch.distributed.checkpoint: any number of ranks loads what any number wrote. Nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from cluster.errors import CheckpointError
from cluster.files import PARTIAL, fsync_path, publish, sha256_of, write_json
from training.progress import Progress
from training.weights import Weights

if TYPE_CHECKING:  # reading a checkpoint for an export needs no DeepSpeed
    from training.engine import Engine

log = logging.getLogger(__name__)

COMMIT = "commit.json"
FORMAT_VERSION = 3  # 2 had nothing of a progress but the steps
FOLDER = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What a checkpoint's commit file says. `identity` is what a run must not change between two starts."""

    version: int
    step: int
    progress: dict[str, Any]
    world_size: int
    identity: dict[str, Any]
    shapes: dict[str, list[int]]
    files: dict[str, dict[str, Any]]


def read_commit(folder: Path) -> Commit:
    """Read a checkpoint's commit file and check the size of every file it lists."""
    path = folder / COMMIT
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["version"] != FORMAT_VERSION:
            raise CheckpointError(f"{path}: format version {values['version']}, this program reads {FORMAT_VERSION}")
        commit = Commit(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: not a commit file ({error}); move {folder} away to use an older one") from None
    for name, facts in commit.files.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != facts["bytes"]:
            raise CheckpointError(
                f"{folder / name}: {'missing' if size is None else f'{size} bytes'}, the commit file says"
                f" {facts['bytes']}; move {folder} away to use an older one"
            )
    return commit


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def committed_folders(folder: Path) -> list[Path]:
    """Return the checkpoints that were committed, oldest first."""
    found = [path for path in folder.glob("step-*") if FOLDER.fullmatch(path.name) and (path / COMMIT).is_file()]
    return sorted(found, key=step_of)


def newest_checkpoint(folder: Path) -> Path:
    """Return the newest committed checkpoint, or raise CheckpointError."""
    found = committed_folders(folder)
    if not found:
        raise CheckpointError(f"{folder}: holds no checkpoint; run `shardline train RUN.yaml` first")
    return found[-1]


class Checkpoints:
    """The checkpoints of one run. Every method is collective."""

    def __init__(self, folder: Path, identity: dict[str, Any], first_weights: Callable[[], Weights]) -> None:
        self.folder = folder
        self.identity = identity
        self.first_weights = first_weights

    def restore(self, engine: Engine, before: int | None = None, last: int | None = None) -> Progress:
        """Fill the engine from the newest checkpoint, or with the run's first weights; return how far the run has come.

        The first rank chooses, so that all ranks load the same one. With `before`, those of that step and later ones
        are renamed first: the run has gone wrong, and will write others in their place. `last` only looks at those
        of that step and earlier ones.
        """
        chosen: list[Any] = [None]
        if engine.world.is_first:
            if before is not None:
                set_aside(self.folder, before)
            chosen[0] = self.choose(last)
        dist.broadcast_object_list(chosen, src=0)
        if isinstance(chosen[0], CheckpointError):
            raise chosen[0]
        if chosen[0] is None:
            engine.start_from(self.first_weights())
            return Progress()
        folder: Path = chosen[0][0]
        commit: Commit = chosen[0][1]
        started = time.monotonic()
        verify_files(folder, commit, engine.world.rank, engine.world.size)
        state = sharded_state(engine)
        check_shapes(commit, engine, folder)
        load_state(state, storage_reader=HuggingFaceStorageReader(str(folder)))
        progress = Progress.from_record(commit.progress)
        engine.continue_after(progress.updates)
        log.info("loaded %s, written by %d ranks, in %.1f s", folder, commit.world_size, time.monotonic() - started)
        return progress

    def choose(self, last: int | None = None) -> tuple[Path, Commit] | CheckpointError | None:
        """Return the newest checkpoint of this run, up to step `last`; an error is returned, for all ranks to raise."""
        found = [path for path in committed_folders(self.folder) if last is None or step_of(path) <= last]
        if not found:
            return None
        try:
            commit = read_commit(found[-1])
            check_identity(commit.identity, self.identity, found[-1])
        except CheckpointError as error:
            return error
        return found[-1], commit

    def save(self, engine: Engine, progress: Progress) -> None:
        """Write the checkpoint of a progress; it is there, whole and durable, or not at all."""
        final = self.folder / f"step-{progress.steps_done:06d}"
        if (final / COMMIT).is_file():
            return
        partial = final.with_name(final.name + PARTIAL)
        started = time.monotonic()
        if engine.world.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)  # fsyncs every file
        save_state(sharded_state(engine), storage_writer=writer)
        files = gathered_files(partial, engine.world.rank)
        if engine.world.is_first:
            commit = Commit(
                version=FORMAT_VERSION,
                step=progress.steps_done,
                progress=asdict(progress),
                world_size=engine.world.size,
                identity=self.identity,
                shapes={part.name: list(part.shape) for part in engine.parts()},
                files=files,
            )
            write_json(partial / COMMIT, asdict(commit))
            fsync_path(partial)
            publish(partial, final)
            size = sum(facts["bytes"] for facts in files.values())
            log.info("saved %s, %.3f GB in %.1f s", final, size / 1e9, time.monotonic() - started)
        dist.barrier()


def set_aside(folder: Path, first: int) -> None:
    """Rename the checkpoints of step `first` and later ones, so that none of them is loaded again."""
    for path in committed_folders(folder):
        if step_of(path) >= first:
            number = len(list(folder.glob(f"{path.name}.rolled-back-*"))) + 1
            publish(path, path.with_name(f"{path.name}.rolled-back-{number}"))
            log.warning("set %s aside: the run goes back to an older checkpoint", path)


def read_weights(folder: Path, shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Return whole fp32 master weights from a committed checkpoint, in this process alone; `shapes` chooses which."""
    flat = {f"master.{name}": torch.empty(math.prod(shape), dtype=torch.float32) for name, shape in shapes.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # it is, on purpose
        load_state(flat, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return {name: flat[f"master.{name}"].reshape(shape) for name, shape in shapes.items()}


def sharded_state(engine: Engine) -> dict[str, torch.Tensor]:
    """Return the engine's parts as flat DTensors over views of its own memory: loading fills them in place."""
    mesh = init_device_mesh(engine.device.type, (engine.world.size,))
    return {
        f"{kind}.{part.name}": DTensor.from_local(
            tensor, mesh, [Shard(0)], run_check=False, shape=torch.Size([part.numel]), stride=(1,)
        )
        for part in engine.parts()
        for kind, tensor in part.values.items()
    }


def gathered_files(folder: Path, rank: int) -> dict[str, dict[str, Any]]:
    """Return every rank's file with its size and sha256; each rank reads its own. Collective."""
    mine = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in folder.glob(f"shard-{rank + 1:05d}-*.safetensors")
    }
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return {name: facts for files in everyone for name, facts in sorted(files.items())}


def verify_files(folder: Path, commit: Commit, rank: int, world_size: int) -> None:
    """Check every file's sha256, the files dealt to the ranks. Collective: all ranks raise the same error."""
    mine = [
        f"{folder / name}: its sha256 is not the one in {COMMIT}; move {folder} away to use an older one"
        for name, facts in list(commit.files.items())[rank::world_size]
        if sha256_of(folder / name) != facts["sha256"]
    ]
    everyone: list[Any] = [None] * world_size
    dist.all_gather_object(everyone, mine)
    damaged = [message for messages in everyone for message in messages]
    if damaged:
        raise CheckpointError("\n  ".join(damaged))


def check_identity(then: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    changed = [f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in now if then.get(key) != now[key]]
    if changed:
        raise CheckpointError(
            f"{folder}: belongs to another run: {'; '.join(changed)}. A run goes on as it began: put this back, or"
            " give the new run another name"
        )


def check_shapes(commit: Commit, engine: Engine, folder: Path) -> None:
    shapes = {part.name: list(part.shape) for part in engine.parts()}
    if shapes != commit.shapes:
        other = first_difference(shapes, commit.shapes)
        raise CheckpointError(f"{folder}: holds another model; first difference: {other}")


def first_difference(ours: dict[str, list[int]], theirs: dict[str, list[int]]) -> str:
    """Return the first parameter that is not in both, or not of the same shape."""
    return min(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
