"""`shardline track`: send a run's journal to trackers, all at once or as it grows beside `shardline train`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.disk.lock_holder import Holder
from cluster.disk.locks import LockFile, hold_lock
from cluster.errors import EXIT_DONE, EXIT_USER_ACTION, ConfigError, ShardlineError
from cluster.paths import RunPaths
from cluster.wording import count_of
from launch.arguments import add_run
from launch.wording import say
from training.tracking.follower import Follower
from training.tracking.tracker import TRACKERS, is_installed, missing_text

if TYPE_CHECKING:
    from launch.config import RunConfig

log = logging.getLogger(__name__)


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.add_argument(
        "--to", action="append", choices=TRACKERS, metavar="TRACKER", help=f"{', '.join(TRACKERS)}; default: the YAML's"
    )
    command.add_argument(
        "--follow", action="store_true", help="send what is added too, until standard input ends: `train` starts it so"
    )


def run(options: argparse.Namespace) -> int:
    """Send what the trackers do not have yet."""
    paths = paths_of(options)
    if options.follow:
        return followed(paths, options.to)
    if not paths.metrics.is_file() or not paths.metrics.stat().st_size:
        raise ConfigError(f"{paths.metrics}: no step yet, so there is nothing to send; first: shardline train")
    names = options.to or configured(options)
    if not names:
        raise ConfigError("the run has no trackers; name one: --to tensorboard")
    is_complete = True
    for name in names:
        is_complete &= sent(Follower(paths, name))
    return EXIT_DONE if is_complete else EXIT_USER_ACTION


def paths_of(options: argparse.Namespace) -> RunPaths:
    """Return the paths of the run that was named; its folder needs no look at the configuration."""
    if options.run.is_dir() and not options.overrides:
        return RunPaths(options.run)
    from launch.saved_config import load

    return load(options).paths


def configured(options: argparse.Namespace) -> list[str]:
    from launch.saved_config import load

    return trackers_of(load(options))


def trackers_of(run: RunConfig) -> list[str]:
    """Return the names of the run's trackers; `auto` is TensorBoard where it is installed."""
    if run.trackers == "auto":
        return ["tensorboard"] if is_installed("tensorboard") else []
    return list(dict.fromkeys(run.trackers))


def missing_trackers(run: RunConfig) -> Iterator[str]:
    """Yield what to install for each tracker that the run names and that has no library here."""
    return (missing_text(name) for name in trackers_of(run) if not is_installed(name))


def commands_of(run: RunConfig) -> dict[str, Sequence[str]]:
    """Return the command that follows the run for each of its trackers."""
    command = [sys.executable, "-m", "launch", "track", "--follow", str(run.paths.root)]
    return {f"tracker {name}": [*command, "--to", name] for name in trackers_of(run)}


def sent(follower: Follower) -> bool:
    """Send what is there; return whether the tracker has all of it."""
    follower.is_over.set()
    with held(follower):
        is_complete = follower.follow()
    if is_complete:
        steps = follower.sent_steps
        say(f"{follower.name}: sent {count_of(steps, 'step')}" if steps else f"{follower.name}: has all steps already")
    return is_complete


def followed(paths: RunPaths, names: Sequence[str]) -> int:
    """Follow the run for one tracker until standard input ends. A failure is a warning: the run does not need it."""
    (name,) = names
    follower = Follower(paths, name)
    try:
        with held(follower, is_over=os.dup(sys.stdin.fileno())):
            return EXIT_DONE if follower.follow() else EXIT_USER_ACTION
    except (ShardlineError, OSError) as error:  # a full disk, a file where the folder should be
        log.warning("tracker %s: not used: %s", name, error)
        return EXIT_USER_ACTION


@contextmanager
def held(follower: Follower, is_over: int | None = None) -> Iterator[None]:
    """Be the only process that sends this run to this tracker, with what its library prints in a file.

    `is_over` is a file descriptor: once it ends, the follower's run is over.
    """
    folder = follower.paths.trackers
    folder.mkdir(parents=True, exist_ok=True)
    with (
        hold_lock(LockFile(folder / f"{follower.name}.lock", holder=Holder.here("shardline track"))),
        library_output_in(folder / f"{follower.name}.log"),
    ):
        if is_over is not None:
            threading.Thread(target=wait_for_end, args=(is_over, follower.is_over), daemon=True).start()
        yield


def wait_for_end(descriptor: int, is_over: threading.Event) -> None:
    while os.read(descriptor, 1024):
        pass
    is_over.set()


@contextmanager
def library_output_in(path: Path) -> Iterator[None]:
    """Send what is written to standard output and error to a file, but for our own log; give nothing to read.

    Libraries of trackers print a lot, and one that finds no key would ask for it.
    """
    sys.stdout.flush()
    saved = [os.dup(number) for number in range(3)]
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.StreamHandler)]
    with path.open("ab") as log_file, os.fdopen(os.dup(saved[2]), "w", buffering=1) as ours:
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 0)
        os.dup2(log_file.fileno(), 1)
        os.dup2(log_file.fileno(), 2)
        before = [handler.setStream(ours) for handler in handlers]
        try:
            yield
        finally:
            for handler, stream in zip(handlers, before, strict=True):
                handler.setStream(stream)
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in enumerate(saved):
                os.dup2(copy, number)
                os.close(copy)
