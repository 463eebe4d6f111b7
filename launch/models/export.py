"""`shardline export`: write the newest checkpoint as a Hugging Face folder."""

from __future__ import annotations

import argparse

from cluster.disk.lock_holder import Holder
from cluster.disk.run_lock import hold_run
from cluster.errors import EXIT_DONE
from cluster.progress import Waiting
from launch.arguments import add_run
from launch.config import RunConfig
from launch.saved_config import load, origin_of
from launch.wording import named, say


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)


def run(options: argparse.Namespace) -> int:
    """Write the newest checkpoint as a Hugging Face folder."""
    run = load(options)
    exporting = Waiting("writing the export and verifying it")
    with (
        hold_run(run.paths, Holder.here("shardline export")),
        exporting,
    ):  # before torch is imported, which takes seconds
        export_run(run)
    again = named(options, run.paths)
    say(f"{run.paths.export}\nnext: shardline evaluate {again}, or shardline chat {again}")
    return EXIT_DONE


def export_run(run: RunConfig) -> None:
    """Export a run that this process holds."""
    from training.export.export import Partial, export

    origin = origin_of(run)
    partial = Partial(origin=origin, seed=run.seed, lora=run.train.lora)
    export(origin, run.paths.checkpoints, run.export, run.paths.export, partial)
