"""`shardline report`: write the page of a run, or one page that compares several."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from cluster.errors import EXIT_DONE, ConfigError
from launch.arguments import add_run
from launch.config import RunConfig
from launch.saved_config import load, load_run
from launch.wording import say


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.add_argument("others", type=Path, nargs="*", metavar="run", help="further runs, to compare with the first")
    command.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where the comparison goes; default: compare-NAME-NAME.html in the current folder",
    )


def run(options: argparse.Namespace) -> int:
    """Write the run's page into its folder, or the comparison into the current one."""
    from training.reporting.comparison import write_comparison
    from training.reporting.report import write_report

    if not options.others:
        if options.output is not None:
            raise ConfigError("--output: only for a comparison; the page of one run is report.html in its folder")
        one = load(options)
        say(str(write_report(one.paths, one.shards, one.name)))
        return EXIT_DONE
    if options.overrides:
        raise ConfigError("-o: not with several runs, as it would change only one; name the runs by their folders")
    runs = [load(options), *(load_run(path) for path in options.others)]
    require_different(runs)
    output = options.output or default_output(runs)
    if output.is_dir():
        raise ConfigError(f"--output {output}: a folder; name a file, such as {output / default_output(runs)}")
    say(str(write_comparison([(one.paths, one.shards, one.name) for one in runs], output)))
    return EXIT_DONE


def require_different(runs: list[RunConfig]) -> None:
    """Raise ConfigError if a run was named twice."""
    seen: set[Path] = set()
    for one in runs:
        root = one.paths.root.resolve()
        if root in seen:
            raise ConfigError(f"{one.paths.root}: named twice; name two or more different runs to compare them")
        seen.add(root)


def default_output(runs: list[RunConfig]) -> Path:
    """Return a file name in the current folder made of the names of the runs."""
    names = "-".join(re.sub(r"[^\w.]+", "_", one.name) for one in runs)
    return Path(f"compare-{names[:80]}.html")
