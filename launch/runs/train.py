"""`shardline train`, as the process that starts the ranks and as one of them; and a replay of one step."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.disk.lock_holder import Holder
from cluster.disk.run_lock import hold_run, hold_run_for_rank
from cluster.environment import LOCK, World, allocation_end, enter_world, gpu_count, lock_of_launcher, read_world
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED
from cluster.journal import world_size_at
from cluster.launching.companions import companions
from cluster.launching.local_launcher import run_ranks
from cluster.launching.stop_request import StopFlag
from cluster.progress import Waiting
from cluster.restart_limit import note_interruption, note_launch
from data_prep.shards import check_shards, read_manifest
from launch.arguments import add_run, positive, step_range
from launch.config import RunConfig
from launch.runs.check import check_fits, check_source, local_ranks
from launch.runs.rank_imports import lean_imports
from launch.runs.slurm_job import UNDER_SLURM, train_in_job
from launch.runs.track import commands_of
from launch.saved_config import load, saved_text
from launch.wording import as_typed, named, say
from training.plan import identity_of
from training.run_identity import check_identity, committed_identity

if TYPE_CHECKING:
    from training.train_rank import RunRequest

log = logging.getLogger(__name__)

STOPPING = "stopping after this step: saving a checkpoint; Ctrl-C again ends now"
IMPORTING = "importing torch, transformers and DeepSpeed"
IMPATIENT_S = 2.0  # trackers have no longer than this to end after a second Ctrl-C
TRAINING = "shardline train"  # how the run's lock names its holder


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.add_argument(
        "--ranks", type=positive, help="processes on this machine (default: one a GPU, or train.cpu_ranks)"
    )
    command.add_argument(
        "--from",
        dest="from_run",
        type=Path,
        metavar="RUN",
        help="start a new run from another run's exported weights, on its shards",
    )
    command.add_argument("--restart", action="store_true", help="restart failed ranks as long as they reach new steps")
    command.add_argument(
        "--profile",
        type=step_range,
        metavar="FIRST-LAST",
        help="trace these steps with torch's profiler, into the run's folder profile/",
    )
    command.add_argument(
        UNDER_SLURM,
        action="store_true",
        help="for launch/train.sh: start the ranks of this Slurm job until the run ends",
    )


def run(options: argparse.Namespace) -> int:
    """Train as a rank if a launcher made this process one; else start the ranks of this machine."""
    run = load(options)
    if options.under_slurm:
        return train_in_job(run.paths, lambda note: check_and_note(run, note))
    world = read_world()
    if world is None:
        check_start(run)
        return start_ranks(run, options)
    check_fits(run, read_manifest(run.shards))  # this host may see another folder than the one that started the ranks
    with hold_run_for_rank(run.paths, world, TRAINING):
        check_resumes(run)
        is_ours = world.is_first and lock_of_launcher() is None  # else the process that started the ranks does it
        with companions(commands_of(run) if is_ours else {}):
            return train_as_rank(run, world, options.profile)


def check_and_note(run: RunConfig, note: Callable[[], None]) -> None:
    """Check what can be known before ranks are started, then record the launch, while nobody else trains the run."""
    check_start(run)
    with hold_run(run.paths, Holder.here("launch/train.sh")):
        check_resumes(run)
        note()


def check_start(run: RunConfig) -> None:
    """Raise what can be known before any rank is started: once for all ranks, and in a second.

    Raises ConfigError or DataError.
    """
    manifest = read_manifest(run.shards)
    check_fits(run, manifest)
    check_source(run)
    check_shards(run.shards, manifest.trained_from())


def train_as_rank(run: RunConfig, world: World, profiled: tuple[int, int] | None) -> int:
    """Train as one rank of a run that this launch holds."""
    stop = StopFlag(run.paths.stop_request, allocation_end(), looks_for_file=world.is_first)
    stop.install()
    enter_world(world)
    with Waiting(IMPORTING, is_shown=world.is_first), lean_imports():
        from training.train_rank import train_rank  # after enter_world: torch reads the environment when imported

    return train_rank(replace(rank_request(run), profiled=profiled), world, stop)


def check_resumes(run: RunConfig) -> None:
    """Raise CheckpointError, before anything is started, if the newest checkpoint does not belong to this run.

    The ranks check the rest, which needs the model, when they load it.
    """
    found = committed_identity(run.paths.checkpoints)
    if found is None:
        return
    folder, then, step = found
    manifest = read_manifest(run.shards)
    now = identity_of(run.train, manifest.content_digest, run.seed)
    check_identity(then, now, folder, steps_done=step, rows=manifest.rows("train"))


def start_ranks(run: RunConfig, options: argparse.Namespace) -> int:
    """Run this same command as every rank of this machine; with --restart, again after a failure."""
    ranks = local_ranks(run, options.ranks)
    holder = Holder.here(TRAINING)
    with hold_run(run.paths, holder):
        check_resumes(run)
        if gpu_count() == 0:
            log.info("no GPU here: training on the CPU, ranks: %d", ranks)
        run.paths.stop_request.unlink(missing_ok=True)  # it stopped the attempt before this one
        with companions(commands_of(run)) as trackers:
            code = run_with_restarts(run, ranks, holder, restart=options.restart)
            if code == EXIT_INTERRUPTED:
                trackers.end_s = IMPATIENT_S
    if code == EXIT_DONE:
        say(f"next: shardline export {named(options, run.paths)}")
    if code in (EXIT_STOPPED, EXIT_FAILED, EXIT_INTERRUPTED):
        say(f"to resume from the newest checkpoint: shardline train {as_typed(options)}")
    return code


def run_with_restarts(run: RunConfig, ranks: int, holder: Holder, *, restart: bool) -> int:
    """Start the ranks; with `restart`, start them again after each failure as long as they reach new steps."""
    command = [sys.executable, "-m", "launch", *sys.argv[1:]]
    while True:
        note_launch(run.paths)
        code = run_ranks(command, ranks, {LOCK: holder.id}, stopping=STOPPING)
        if code == EXIT_INTERRUPTED:
            note_interruption(run.paths)
        if code != EXIT_FAILED or not restart or run.paths.stop_request.exists():
            return code
        log.warning("restarting the ranks")


def replay(run: RunConfig, options: argparse.Namespace) -> int:
    """Repeat a step: as a rank if this process was started as one, else with as many ranks as took it."""
    world = read_world()
    if world is None:
        return run_ranks([sys.executable, "-m", "launch", *sys.argv[1:]], world_size_at(run.paths, options.step))
    enter_world(world)
    from training.replay import replay_rank

    for line in replay_rank(rank_request(run), world, options.step):
        if world.is_first:
            say(line)
    return EXIT_DONE


def rank_request(run: RunConfig) -> RunRequest:
    """Return the parts of the configuration that a rank needs."""
    from training.train_rank import RunRequest

    return RunRequest(
        paths=run.paths, config=saved_text(run), shards=run.shards, model=run.model, train=run.train, seed=run.seed
    )
