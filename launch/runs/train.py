"""`shardline train`, as the process that starts the ranks and as one of them."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config_loading import flat, parse_yaml
from cluster.disk.lock_holder import Holder
from cluster.disk.run_lock import hold_run, hold_run_for_rank
from cluster.environment import (
    ATTEMPT,
    LOCK,
    allocation_end,
    attempt_of_launcher,
    enter_world,
    gpu_count,
    is_under_srun,
    lock_of_launcher,
    needs_gpus,
    node_name,
    read_host_place,
    read_world,
    set_defaults,
)
from cluster.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    ClusterError,
    ConfigError,
    exit_code_of,
)
from cluster.hosts.meeting import Hello
from cluster.hosts.ranks import run_on_hosts
from cluster.journal.log import set_up_logging
from cluster.launching.companions import companions
from cluster.launching.fork_server import IMPORTING, fork_server_for
from cluster.launching.limits import keep_to_share, set_limits
from cluster.launching.local_launcher import run_ranks
from cluster.launching.rank_log import has_lost, rank_log, remove_old
from cluster.launching.stop_request import StopFlag
from cluster.network.world import HostPlace, World
from cluster.paths import RunPaths
from cluster.progress import Waiting
from cluster.restart_limit import attempt_name, code_that_ranks_recorded, note_launch, note_stop
from cluster.versions import versions
from data_prep.shards import check_shards, read_manifest
from launch.arguments import add_run, positive, step_range
from launch.config import RunConfig
from launch.ranks.imports import lean_imports
from launch.ranks.news import news_of
from launch.ranks.slurm_host import train_on_slurm_host
from launch.ranks.slurm_job import UNDER_SLURM, load_in_job, train_in_job
from launch.ranks.this_command import this_command
from launch.runs.check import check_fits, check_source, local_ranks
from launch.runs.track import commands_of
from launch.saved_config import load, saved_text
from launch.wording import as_typed, named, say
from training.advice.slow_precision import slow_precision_warning
from training.models.untrainable import missing_peft
from training.plan import identity_of
from training.run_identity import check_identity, committed_identity, deal_in

if TYPE_CHECKING:
    from training.train_rank import RunRequest

log = logging.getLogger(__name__)

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
    set_limits()
    if options.under_slurm:
        from launch.preflight.at_start import guard_of  # not in the ranks, which need none of it

        run = load_in_job(partial(load, options))
        return train_in_job(run.paths, partial(check_and_note, run), guard_of(run, options))
    run = load(options)
    place = read_host_place()
    if place is not None and place.ranks is not None and is_under_srun():
        return train_on_slurm_host(run.paths, place, place.ranks, partial(check_and_note, run))
    if place is not None:
        return train_on_hosts(run, options, place)
    world = read_world()
    if world is None:
        check_start(run)
        return start_ranks(run, options)
    if is_under_srun() and not needs_gpus():  # else who starts ranks has bound them, or has not meant to
        keep_to_share(world.local_rank, world.local_size)
    check_fits(run, read_manifest(run.shards))  # this host may see another folder than the one that started the ranks
    with hold_run_for_rank(run.paths, world, TRAINING):
        check_resumes(run)
        is_ours = world.is_first and lock_of_launcher() is None  # else the process that started the ranks does it
        with logged_as_rank(run, world) as log_file, companions(commands_of(run) if is_ours else {}):
            return train_as_rank(run, world, options.profile, log_file)


def check_and_note(run: RunConfig, note: Callable[[], None], command: str = "launch/train.sh") -> None:
    """Check what can be known before ranks are started, then record the launch, while nobody else trains the run."""
    check_start(run)
    with hold_run(run.paths, Holder.here(command)):
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


@contextmanager
def logged_as_rank(run: RunConfig, world: World) -> Iterator[Path]:
    """Write all output of this rank into a log of its own; yield its path.

    A failure that no person has to act on ends the rank with one line if the log has its traceback.
    """
    attempt = attempt_of_launcher() or attempt_name(run.paths)
    set_defaults({ATTEMPT: attempt})  # for the watchdog
    path = run.paths.rank_log(attempt, world.rank)
    if world.is_first:
        remove_old(run.paths.logs)
        remove_old(run.paths.hangs)
    file = None
    heading = f"rank {world.rank} of {world.size} on {node_name()}, process {os.getpid()}"
    try:
        with rank_log(path, heading, is_shown=world.is_first) as file:
            set_up_logging(world, file)
            yield path
    except Exception as error:
        set_up_logging(world)
        if file is None or has_lost(file) or exit_code_of(error) != EXIT_FAILED:
            raise
        log.error("%s; the traceback is in %s", said_of(error), path)
        raise SystemExit(EXIT_FAILED) from None
    finally:
        set_up_logging(world)


def said_of(error: Exception) -> str:
    """Return what kind of an error it is, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def train_as_rank(run: RunConfig, world: World, profiled: tuple[int, int] | None, log_file: Path) -> int:
    """Train as one rank of a run that this launch holds."""
    stop = StopFlag(run.paths.stop_request, allocation_end(), looks_for_file=world.is_first)
    stop.install()
    enter_world(world)
    with Waiting(IMPORTING, is_shown=world.is_first), lean_imports():
        from training.train_rank import train_rank  # after enter_world: torch reads the environment when imported

    return train_rank(replace(rank_request(run), profiled=profiled, log_file=log_file), world, stop)


def check_resumes(run: RunConfig) -> None:
    """Raise CheckpointError, before anything is started, if the newest checkpoint does not belong to this run.

    The ranks check the rest, which needs the model, when they load it.
    """
    found = committed_identity(run.paths.checkpoints)
    if found is None:
        return
    folder, then, step = found
    manifest = read_manifest(run.shards)
    now = identity_of(run.train, manifest.content_digest, run.seed, deal_in(then))
    check_identity(then, now, folder, steps_done=step, rows=manifest.rows("train"))


def start_ranks(run: RunConfig, options: argparse.Namespace) -> int:
    """Run this same command as every rank of this machine; with --restart, again after a failure."""
    ranks = local_ranks(run, options.ranks)
    if missing := missing_peft(lora=run.train.lora is not None):
        raise ConfigError(missing)
    holder = Holder.here(TRAINING)
    with hold_run(run.paths, holder):
        check_resumes(run)
        if gpu_count() == 0:
            log.info("no GPU here: training on the CPU, ranks: %d", ranks)
        if slow := slow_precision_warning(run.train):
            log.warning("%s", slow)
        run.paths.stop_request.unlink(missing_ok=True)  # it stopped the attempt before this one
        with companions(commands_of(run)) as trackers:
            code = run_with_restarts(run, ranks, holder, restart=options.restart)
            if code == EXIT_INTERRUPTED:
                trackers.end_s = IMPATIENT_S
    tell_next(run, options, code)
    return code


def tell_next(run: RunConfig, options: argparse.Namespace, code: int) -> None:
    """Say what to type after a training that ended with this code."""
    if code == EXIT_DONE:
        say(f"next: shardline export {named(options, run.paths)}")
    if code in (EXIT_STOPPED, EXIT_FAILED, EXIT_INTERRUPTED):
        again = (
            "to resume from the newest checkpoint" if committed_identity(run.paths.checkpoints) else "to start again"
        )
        say(f"{again}: shardline train {as_typed(options)}{options_typed(options)}")


def options_typed(options: argparse.Namespace) -> str:
    """Return the options that the next start needs too."""
    ranks = "" if options.ranks is None else f" --ranks {options.ranks}"
    return f"{ranks} --restart" if options.restart else ranks


def train_on_hosts(run: RunConfig, options: argparse.Namespace, place: HostPlace) -> int:
    """Train with the hosts on which the same command was started, this one among them.

    What has started it starts it again after a stop, so a STOP file stays: it would otherwise stop one start only.
    """
    check_start(run)
    stop = run.paths.stop_request
    if stop.exists():
        raise ClusterError(f"{stop} exists: nothing is started; remove it to resume the run")
    shared = {"version of Shardline": versions()["shardline"], "shards": read_manifest(run.shards).content_digest}
    ranks = options.ranks or place.ranks or local_ranks(run, None)
    hello = Hello(place=place, ranks=ranks, run={**shared, **dict(flat(parse_yaml(saved_text(run), "its YAML")))})
    command = this_command()
    with fork_server_for(command, ranks, restart=options.restart) as server:
        code = run_on_hosts(
            command,
            hello,
            lambda: check_and_note(run, lambda: note_launch(run.paths), TRAINING),
            restart=lambda are_all_there: options.restart and may_restart(run.paths),  # a lost host may come back
            news=news_of(run.paths),
            server=server,
        )
    if place.number == 0:
        note_stop(run.paths, code)
        tell_next(run, options, code)
    return code


def may_restart(paths: RunPaths) -> bool:
    """Return whether ranks may start again after a failure: if no stop is wanted, and they recorded no other end."""
    return not paths.stop_request.exists() and code_that_ranks_recorded(paths) in (None, EXIT_FAILED)


def run_with_restarts(run: RunConfig, ranks: int, holder: Holder, *, restart: bool) -> int:
    """Start the ranks; with `restart`, start them again after each failure as long as they reach new steps."""
    command = this_command()
    with fork_server_for(command, ranks, restart=restart) as server:
        while True:
            note_launch(run.paths)
            attempt = attempt_name(run.paths)
            variables = {LOCK: holder.id, ATTEMPT: attempt}
            code = run_ranks(command, ranks, variables, news=news_of(run.paths), server=server)
            note_stop(run.paths, code)
            if code == EXIT_FAILED and (said := code_that_ranks_recorded(run.paths)) not in (None, EXIT_FAILED):
                log.warning("a rank failed as it ended, after the run had recorded its end: %s", said)
                return said
            if code != EXIT_FAILED or not restart or run.paths.stop_request.exists():
                return code
            log.warning("restarting the ranks")


def rank_request(run: RunConfig) -> RunRequest:
    """Return the parts of the configuration that a rank needs."""
    from training.train_rank import RunRequest

    return RunRequest(
        paths=run.paths, config=saved_text(run), shards=run.shards, model=run.model, train=run.train, seed=run.seed
    )
