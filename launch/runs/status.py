"""`shardline status`: show the state of a run."""

from __future__ import annotations

import argparse

from cluster.errors import EXIT_DONE
from launch.arguments import add_run
from launch.saved_config import load
from launch.wording import say, with_run_named
from training.reporting.status import status_text


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)


def run(options: argparse.Namespace) -> int:
    """Report the state of the run."""
    say(with_run_named(status_text(load(options).paths), options))
    return EXIT_DONE
