"""`shardline report`: write the run's page."""

from __future__ import annotations

import argparse

from cluster.errors import EXIT_DONE
from launch.arguments import add_run
from launch.saved_config import load
from launch.wording import say


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)


def run(options: argparse.Namespace) -> int:
    """Write the run's page."""
    from training.reporting.report import write_report

    run = load(options)
    say(str(write_report(run.paths, run.shards, run.name)))
    return EXIT_DONE
