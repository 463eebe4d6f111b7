"""`shardline verify`: check every byte of a run's data, or of a data folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from cluster.errors import EXIT_DONE, EXIT_USER_ACTION
from data_prep.shards import MANIFEST, read_manifest
from launch.arguments import add_run
from launch.saved_config import load
from launch.wording import say


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.description = "RUN may also be the data's own folder: the one with manifest.json in it."


def run(options: argparse.Namespace) -> int:
    """Check every byte of a run's data, or of a data folder."""
    from data_prep.verify import verified_bytes, verify

    folder: Path = options.run if (options.run / MANIFEST).is_file() else load(options).shards
    problems = verify(folder)
    for problem in problems:
        say(problem)
    if problems:
        return EXIT_USER_ACTION
    manifest = read_manifest(folder)
    say(f"{folder}: {verified_bytes(manifest):,} bytes, every byte is as the manifest says ({manifest.digest[:16]})")
    return EXIT_DONE
