"""A ZeRO-3 checkpoint that DeepSpeed wrote by itself, made one of a run's own, rank by rank, without a whole tensor.

    FOLDER/latest                                                names the tag, unless one is given
    FOLDER/TAG/zero_pp_rank_R_mp_rank_00_model_states.pt         names and shapes of the parameters, by sub-group
    FOLDER/TAG/[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt  rank R's flat master weights and moments, by sub-group

In a sub-group's flat tensors a rank's spans follow one another, ceil(n / world) elements for a parameter of n, the
last ones padded: rank R's spans are those of our own rank R, so each file becomes one of ours.
These files are pickles. Nothing that they name is imported or run: what torch does not know is read as an inert object.
"""

from __future__ import annotations

import math
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from cluster.disk.atomic_files import PARTIAL
from cluster.errors import CheckpointError
from training.checkpoints.layout import (
    Commit,
    commit_folder,
    committed_folders,
    files_record,
    first_difference,
    folder_of,
)
from training.checkpoints.shard_files import FileFacts, Span, rank_file_name, write_rank_file
from training.checkpoints.span_index import rank_spans, runs_of
from training.optimizer_state import KINDS, MOMENTS
from training.train_state import TrainState

OPTIMIZER_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
MODEL_FILE = "zero_pp_rank_0_mp_rank_00_model_states.pt"
REFUSAL = re.compile(r"(?:Trying to|Unsupported|Can only|Only persistent)[^\n]*")  # in torch's many words, the reason

Shapes = dict[str, list[int]]


class Inert:
    """Stands for any object that a pickle names and torch does not know: it is made, and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class RankState:
    """What a rank's optimizer file holds: Adam's step, and by sub-group the flat tensors, mapped from the file."""

    step: int
    groups: list[dict[str, torch.Tensor]]


def import_deepspeed(
    source: Path, tag: str | None, checkpoints: Path, shapes: Shapes, identity: dict[str, Any]
) -> Path:
    """Write DeepSpeed's checkpoint into a run's folder as a committed one of its own; return its folder.

    `shapes` are those of the run's model, `identity` is the run's. The run resumes at the step of DeepSpeed's Adam,
    with the weights and moments as they are, bit for bit; rates, decay and the order of the data are the run's own.
    Raises CheckpointError for what is missing, torn, of another model or of another ZeRO stage.
    """
    there = committed_folders(checkpoints)
    if there:
        raise CheckpointError(f"{there[-1]}: the run has checkpoints of its own; give the new run another name")
    folder = tag_folder(source, tag)
    files = optimizer_files(folder)
    groups = sub_groups(folder)
    check_model(groups, shapes, folder)
    check_room(checkpoints, files)
    partial = checkpoints / f"deepspeed{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        steps: set[int] = set()
        facts: dict[str, FileFacts] = {}
        ranks = []
        for rank, path in enumerate(files):
            step, written = convert_rank(path, rank, len(files), groups, partial)
            steps.add(step)
            facts |= written
            ranks.append(rank_spans("master", [span for *_, span in spans("master", groups, rank, len(files))]))
        if len(steps) != 1:
            raise CheckpointError(f"{folder}: its files are of different steps: {sorted(steps)}; take another tag")
        progress = TrainState(steps_done=steps.pop())
        commit = Commit(
            step=progress.steps_done,
            progress=progress.as_record(),
            world_size=len(files),
            identity=identity,
            shapes=shapes,
            files=files_record(facts),
            spans=runs_of(ranks),
        )
        final = folder_of(checkpoints, commit.step)
        commit_folder(partial, final, commit)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def tag_folder(source: Path, tag: str | None) -> Path:
    """Return the folder of the rank files: the tag's, the one that `latest` names, or `source` itself."""
    if tag is None and any(OPTIMIZER_FILE.fullmatch(path.name) for path in source.glob("*.pt")):
        return source
    tags = sorted({path.parent.name for path in source.glob("*/*_optim_states.pt")})
    if not tags:
        raise CheckpointError(f"{source}: holds no checkpoint of DeepSpeed's ZeRO, no */*_optim_states.pt")
    if tag is None:
        latest = source / "latest"
        if not latest.is_file():
            raise CheckpointError(f"{latest}: missing; choose with --tag one of {', '.join(tags)}")
        tag = latest.read_text(encoding="utf-8").strip()
    if tag not in tags:
        raise CheckpointError(f"{source / tag}: no such checkpoint; choose with --tag one of {', '.join(tags)}")
    return source / tag


def optimizer_files(folder: Path) -> list[Path]:
    """Return the ranks' optimizer files in the order of the ranks. Raises CheckpointError if a rank's is missing."""
    matches = [match for path in folder.glob("*.pt") if (match := OPTIMIZER_FILE.fullmatch(path.name))]
    by_rank = {int(match[1]): folder / match[0] for match in matches}
    if any(int(match[2]) for match in matches):
        raise CheckpointError(f"{folder}: was written with tensor parallelism; only data-parallel ZeRO-3 can be read")
    missing = [rank for rank in range(max(by_rank) + 1) if rank not in by_rank]
    if missing or len(by_rank) != len(matches):
        what = f"rank {missing[0]}'s optimizer file is missing" if missing else "two files for one rank"
        raise CheckpointError(f"{folder}: {what}; copy the whole folder again, or take another tag")
    return [by_rank[rank] for rank in sorted(by_rank)]


def sub_groups(folder: Path) -> list[Shapes]:
    """Return the trained parameters' shapes by sub-group, in the order in which they lie in the flat tensors."""
    path = folder / MODEL_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path}: missing; it holds the parameters' names. Only what ZeRO stage 3 wrote can be read: from stage 1"
            " or 2, save the model with save_pretrained and begin a run with it as model.path"
        )
    values = read_pickle(path)
    try:
        frozen = list(values["frozen_param_shapes"] or {})
        groups = [{name: [int(n) for n in shape] for name, shape in group.items()} for group in values["param_shapes"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a model file of DeepSpeed's ZeRO-3 ({error!r})") from None
    if frozen:
        raise CheckpointError(f"{path}: {len(frozen)} frozen parameters, such as {frozen[0]}: all must be trained here")
    return groups


def check_model(groups: list[Shapes], shapes: Shapes, folder: Path) -> None:
    stored = {name: shape for group in groups for name, shape in group.items()}
    if stored != shapes:
        other = first_difference(shapes, stored)
        raise CheckpointError(
            f"{folder}: holds another model than the run's; first difference: {other} is {stored.get(other)} there,"
            f" {shapes.get(other)} here; set `model:` in the run's YAML to what was trained"
        )


def check_room(checkpoints: Path, files: list[Path]) -> None:
    checkpoints.mkdir(parents=True, exist_ok=True)
    needed, free = sum(path.stat().st_size for path in files), shutil.disk_usage(checkpoints).free
    if needed > free:
        raise CheckpointError(f"{checkpoints}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; make room")


def convert_rank(
    path: Path, rank: int, world_size: int, groups: list[Shapes], partial: Path
) -> tuple[int, dict[str, FileFacts]]:
    """Write a rank's files from DeepSpeed's; return Adam's step and the facts for the commit file."""
    state = read_rank(path, world_size)
    facts: dict[str, FileFacts] = {}
    lengths = [sum(-(-math.prod(shape) // world_size) for shape in group.values()) for group in groups]
    for kind in KINDS:
        found = [flat[kind].numel() for flat in state.groups]
        if found != lengths:
            raise CheckpointError(
                f"{path}: {kind} has {found} elements by sub-group, {world_size} ranks of this model have {lengths}"
            )
        places = list(spans(kind, groups, rank, world_size))
        name = rank_file_name(kind, rank, world_size)
        facts[name] = write_rank_file(
            partial / name,
            [part for _, _, part in places],
            (state.groups[group][kind].narrow(0, offset, part.numel) for group, offset, part in places),
        )
    return state.step, facts


def spans(kind: str, groups: list[Shapes], rank: int, world_size: int) -> Iterator[tuple[int, int, Span]]:
    """Yield a rank's spans, each with its sub-group and its place in that one's tensors; padding is left out."""
    for number, group in enumerate(groups):
        offset = 0
        for name, shape in group.items():
            numel = math.prod(shape)
            size = -(-numel // world_size)
            start, stop = min(rank * size, numel), min((rank + 1) * size, numel)
            if stop > start:
                yield number, offset, Span(key=f"{kind}.{name}", start=start, numel=stop - start)
            offset += size


def read_rank(path: Path, world_size: int) -> RankState:
    """Read a rank's optimizer file, and check that it is one of `world_size` files."""
    try:
        values = read_pickle(path)["optimizer_state_dict"]
        count = values["partition_count"]
        masters = values["fp32_flat_groups"]
        state = values["optimizer_state_dict"]["state"]
        groups = [{"master": flat, **{m: state[n][m] for m in MOMENTS}} for n, flat in enumerate(masters)]
        steps = {int(state[n]["step"]) for n in range(len(masters))}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: no master weights with Adam's moments ({error!r}); what can be read is ZeRO stage 3 with Adam,"
            " not offloaded to NVMe, saved after its first step"
        ) from None
    if count != world_size:
        raise CheckpointError(
            f"{path}: is one of {count} ranks' files, {world_size} are here; copy the whole folder again, or take"
            " another tag"
        )
    if len(steps) != 1 or any(flat.dtype != torch.float32 or flat.dim() != 1 for g in groups for flat in g.values()):
        raise CheckpointError(f"{path}: not flat fp32 tensors of one step; steps: {sorted(steps)}")
    return RankState(step=steps.pop(), groups=groups)


def read_pickle(path: Path) -> dict[str, Any]:
    """Return what torch.save wrote, with its tensors mapped, after every byte was checked by the archive's own sums.

    No code that the file names is imported or run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f"{path}: damaged: {damaged} does not match its checksum; copy it again")
        inert: list[Any] = [(Inert, name) for name in get_unsafe_globals_in_checkpoint(path)]
        with safe_globals(inert):
            values = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(f"{path}: not a whole file ({error}); copy it again, or take another tag") from None
    except (RuntimeError, ValueError, pickle.UnpicklingError) as error:
        found = REFUSAL.search(str(error))
        reason = found[0] if found else str(error)
        raise CheckpointError(f"{path}: cannot be read without running code of its own ({reason})") from None
    return dict(values)
