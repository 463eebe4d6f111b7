"""`shardline checkpoint ACTION RUN`: list, verify, show, keep and import checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from cluster.disk.atomic_files import PARTIAL, fsync_path
from cluster.disk.lock_holder import Holder
from cluster.disk.run_lock import hold_run
from cluster.errors import EXIT_DONE, EXIT_USER_ACTION, CheckpointError
from cluster.progress import Waiting
from cluster.wording import bytes_text, count_of
from data_prep.shards import read_manifest
from launch.arguments import add_run, positive, step_or
from launch.config import RunConfig
from launch.saved_config import load, origin_of, save_config
from launch.wording import as_typed, named, say
from training.checkpoints.layout import (
    KEEP,
    REASON,
    DamagedError,
    candidate_folders,
    folder_of,
    newest_checkpoint,
    read_commit,
    set_aside_folders,
    step_of,
    superseded_folders,
)
from training.checkpoints.layout import verify as verified

ROW = "{:<12} {:<20} {:>5} {:>10}  {}"


def add_arguments(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    found = {name: actions.add_parser(name, help=text, description=text) for name, (_, text) in ACTIONS.items()}
    for action in found.values():
        add_run(action)
    found["verify"].add_argument(
        "step", type=step_or("all"), nargs="?", default="all", help="a step, or 'all' (default)"
    )
    found["show"].add_argument(
        "step", type=step_or("newest"), nargs="?", default="newest", help="a step, or 'newest' (default)"
    )
    for name in ("keep", "unkeep"):
        found[name].add_argument("step", type=positive, help="the step of the checkpoint")
    found["convert"].add_argument(
        "--from-deepspeed",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="the folder of DeepSpeed's `latest` and tags",
    )
    found["convert"].add_argument("--tag", help="the tag, such as global_step500; default: what `latest` says")


def run(options: argparse.Namespace) -> int:
    """List, check, show, keep or import checkpoints."""
    act, _ = ACTIONS[options.action]
    return act(load(options), options)


def list_checkpoints(run: RunConfig, options: argparse.Namespace) -> int:
    """List what is in the run's checkpoints folder, a line each; file sizes are checked, bytes are not."""
    folder = run.paths.checkpoints
    found = candidate_folders(folder)
    if found:
        say(ROW.format("step", "written (UTC)", "ranks", "size", "state"))
    else:
        say(f"{folder}: holds no checkpoint; next: shardline train {as_typed(options)}")
    for path in found:
        say(row(path))
    for path in sorted(folder.glob(f"*{PARTIAL}")):
        say(f"{path.name}: not a checkpoint: it is being written or removed, or the process that did so was killed")
    for path in [*set_aside_folders(folder), *superseded_folders(folder)]:
        reason = path / REASON
        why = reason.read_text(encoding="utf-8").strip() if reason.is_file() else f"no {REASON} is in it"
        say(f"{path}: not read any more\n  {why}")
    return EXIT_DONE


def row(folder: Path) -> str:
    """Return the line of one checkpoint."""
    kept = ", kept" if (folder / KEEP).exists() else ""
    try:
        commit = read_commit(folder)
    except CheckpointError as error:
        return ROW.format(f"{step_of(folder):,}", "", "", "", f"cannot be used{kept}: {error}")
    loss = commit.resumed().validation_loss
    state = f"whole{kept}" if loss is None else f"whole{kept}, validation loss {loss:.4f}"
    written = commit.written.replace("T", " ").removesuffix("+00:00")
    return ROW.format(f"{commit.step:,}", written, commit.world_size, bytes_text(commit.bytes), state)


def verify(run: RunConfig, options: argparse.Namespace) -> int:
    """Check every byte of one checkpoint, or of all; print a line for each, and return 2 if any is damaged."""
    code = EXIT_DONE
    for folder in chosen(run, options.step):
        try:
            with Waiting(f"verifying {folder}"):
                commit = verified(folder)
        except CheckpointError as error:
            code = EXIT_USER_ACTION
            say(str(error))
            if isinstance(error, DamagedError):
                say(f"  next: `shardline train {as_typed(options)}` sets it aside and uses an older one")
        else:
            files = count_of(len(commit.files), "file")
            say(f"{folder}: {commit.bytes:,} bytes in {files}, every byte is as it was committed")
    return code


def show(run: RunConfig, options: argparse.Namespace) -> int:
    """Print all that a checkpoint's commit file holds."""
    (folder,) = chosen(run, options.step)
    commit = read_commit(folder)
    progress = commit.resumed()
    skipped = ", ".join(str(step + 1) for step in progress.skipped) or "none"
    facts = {
        "folder": f"{folder}{', kept' if (folder / KEEP).exists() else ''}",
        "written": f"{commit.written} by ranks: {commit.world_size}; format version {commit.version}",
        "progress": f"{count_of(progress.steps_done, 'step')} taken, {count_of(progress.updates, 'update')};"
        f" steps skipped: {skipped}",
    }
    lines = [f"{name:<10}{fact}" for name, fact in facts.items()]
    lines += ["identity", *(f"  {key:<38} {value}" for key, value in commit.identity.items())]
    lines += ["files", *(f"  {name} {f['bytes']:>16,} bytes  {f['sha256']}" for name, f in commit.files.items())]
    lines += ["parameters", *(f"  {name:<60} {shape}" for name, shape in commit.shapes.items())]
    say("\n".join(lines))
    return EXIT_DONE


def keep(run: RunConfig, options: argparse.Namespace) -> int:
    """Mark a checkpoint as kept: training never removes it."""
    (folder,) = chosen(run, options.step)
    (folder / KEEP).touch()
    fsync_path(folder)
    say(f"{folder}: kept until you unkeep or remove it")
    return EXIT_DONE


def unkeep(run: RunConfig, options: argparse.Namespace) -> int:
    """Remove the mark of a kept checkpoint."""
    (folder,) = chosen(run, options.step)
    (folder / KEEP).unlink(missing_ok=True)
    fsync_path(folder)
    say(f"{folder}: will be removed once there are train.keep_last newer ones")
    return EXIT_DONE


def convert(run: RunConfig, options: argparse.Namespace) -> int:
    """Import a checkpoint that DeepSpeed wrote as the run's first one."""
    with hold_run(run.paths, Holder.here("shardline checkpoint convert")):
        folder, total_steps = converted(run, options)
        save_config(run)
    again = named(options, run.paths)
    say(f"{folder}: DeepSpeed's weights and moments; learning rate, decay and the order of the data are this run's")
    if step_of(folder) < total_steps:
        say(f"next: shardline train {again}, up to step {total_steps:,}")
    else:
        say(f"train.steps: the run ends at {total_steps:,}; raise it to train further, or: shardline export {again}")
    return EXIT_DONE


def converted(run: RunConfig, options: argparse.Namespace) -> tuple[Path, int]:
    """Import the checkpoint; return its folder and the last step of the run."""
    from training.checkpoints.import_deepspeed import import_deepspeed
    from training.plan import make_plan

    manifest = read_manifest(run.shards)
    origin = origin_of(run)
    shapes = {name: list(parameter.shape) for name, parameter in origin.skeleton.named_parameters()}
    plan = make_plan(run.train, manifest, parameters=origin.parameters, world_size=1, seed=run.seed)
    identity = {**plan.identity(), **origin.identity()}
    folder = import_deepspeed(options.from_deepspeed, options.tag, run.paths.checkpoints, shapes, identity)
    return folder, plan.total_steps


def chosen(run: RunConfig, step: int | str) -> list[Path]:
    """Return the checkpoints that 'all', 'newest' or a step names. Raises CheckpointError if there is none."""
    folder = run.paths.checkpoints
    found = candidate_folders(folder)
    if step == "all" and found:
        return found
    if isinstance(step, str):
        return [newest_checkpoint(folder)]
    if folder_of(folder, step) not in found:
        there = ", ".join(str(step_of(path)) for path in found) or "none"
        raise CheckpointError(f"{folder}: holds no checkpoint of step {step}; there are: {there}")
    return [folder_of(folder, step)]


ACTIONS = {  # name: (what is called, what it does)
    "list": (list_checkpoints, "list the run's checkpoints"),
    "verify": (verify, "check every byte of one checkpoint, or of all"),
    "show": (show, "show what a checkpoint holds, and which run it belongs to"),
    "keep": (keep, "mark a checkpoint as kept: training never removes it"),
    "unkeep": (unkeep, "remove the mark"),
    "convert": (convert, "import a ZeRO-3 checkpoint that DeepSpeed wrote, for the run to resume from"),
}
