"""`shardline status`: show the state of a run, once or until it ends, or list the runs of a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import EXIT_DONE, ConfigError
from cluster.paths import RunPaths
from cluster.submission.jobs_of_run import QueueState
from launch.arguments import add_overrides, not_negative
from launch.wording import say, with_run_named
from training.reporting.status import status_text
from training.reporting.watch import list_text, looks, looks_at_all, watch

RUNS = Path("runs")
WATCH_S = 2.0
LEAST_S = 0.2


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "run", type=Path, nargs="?", default=RUNS, help="the run's YAML file, or its folder; or a folder of runs: runs"
    )
    add_overrides(command)
    command.add_argument(
        "--watch",
        type=seconds,
        nargs="?",
        const=WATCH_S,
        metavar="SECONDS",
        help=f"show it again every so many seconds ({WATCH_S:g}) until the run ends, the last of several, or Ctrl-C",
    )


def seconds(text: str) -> float:
    """Parse what follows --watch, which may be the run."""
    try:
        return not_negative(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"{error}; a run is named before it: shardline status {text} --watch"
        ) from None


def run(options: argparse.Namespace) -> int:
    """Report the state of the run, or of each run in the folder."""
    if options.run == RUNS and not RUNS.exists():
        raise ConfigError(
            f"{RUNS}: no such folder here, so there is no run to list; `shardline init` begins one, or name a run's"
            " folder"
        )
    runs = runs_in(options.run)
    if options.run == RUNS and not runs and not RunPaths(RUNS).config.exists():
        raise ConfigError(f"{RUNS}: no run in it has begun yet, so there is none to list; name a run's YAML file")
    every_s = None if options.watch is None else max(LEAST_S, options.watch)
    if runs and every_s is not None:
        watch(lambda bars: looks_at_all(lambda: runs_in(options.run), every_s), sys.stdout)
    elif runs:
        say(list_text(runs))
    elif every_s is not None:
        paths = paths_of(options)
        queue = QueueState(paths)
        watch(lambda bars: named_looks(looks(paths, every_s, bars, queue.text), options), sys.stdout)
    else:
        paths = paths_of(options)
        say(with_run_named(status_text(paths, queue=QueueState(paths).text()), options))
    return EXIT_DONE


def named_looks(found: Iterator[list[str]], options: argparse.Namespace) -> Iterator[list[str]]:
    for lines in found:
        yield [with_run_named(line, options) for line in lines]


def runs_in(folder: Path) -> list[RunPaths]:
    """Return the runs in a folder that is no run itself, by name."""
    if not folder.is_dir() or RunPaths(folder).config.exists():
        return []
    found = [RunPaths(inner) for inner in sorted(folder.iterdir()) if inner.is_dir()]
    return [paths for paths in found if paths.config.exists()]


def paths_of(options: argparse.Namespace) -> RunPaths:
    """Return the paths of the run that was named; a run's folder needs no look at its configuration."""
    paths = RunPaths(options.run)
    if paths.config.is_file() and not options.overrides:
        return paths
    from launch.saved_config import load  # it takes as long as all the rest to import what checks a configuration

    return load(options).paths
