"""`shardline status`: show the state of a run, once or until it ends, or list the runs of a folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.errors import EXIT_DONE, ConfigError
from cluster.paths import RunPaths
from launch.arguments import add_overrides, not_negative
from launch.wording import say, with_run_named
from training.reporting.status import status_text
from training.reporting.watch import list_text, watch

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
        help=f"show it again every so many seconds ({WATCH_S:g}) until the run ends, or Ctrl-C",
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
    if runs and options.watch is None:
        say(list_text(runs))
        return EXIT_DONE
    paths = paths_of(options)
    if options.watch is not None:
        watch(paths, max(LEAST_S, options.watch), sys.stdout, lambda line: with_run_named(line, options))
    else:
        say(with_run_named(status_text(paths), options))
    return EXIT_DONE


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
