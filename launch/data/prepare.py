"""`shardline prepare`: turn the corpus into shards, or show some rows of them."""

from __future__ import annotations

import argparse
import sys

from cluster.disk.atomic_files import full_disk_named
from cluster.disk.lock_holder import Holder
from cluster.disk.run_lock import hold_run
from cluster.errors import EXIT_DONE
from launch.arguments import add_run, positive
from launch.runs.check import check_source
from launch.saved_config import load, save_config
from launch.wording import named, say


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.add_argument(
        "--preview", type=positive, metavar="N", help="show N rows and which tokens are trained; write nothing"
    )


def run(options: argparse.Namespace) -> int:
    """Turn the corpus into shards, or show some rows of them."""
    from data_prep.prepare import prepare
    from data_prep.preview.row_preview import preview
    from data_prep.select.ledger import summary

    run = load(options)
    check_source(run)
    if options.preview is not None:
        colour = sys.stdout.isatty()
        adds = run.model.may_add_tokens
        say(preview(run.data, run.shards, run.model.path, options.preview, colour=colour, may_add_tokens=adds))
        return EXIT_DONE
    with hold_run(run.paths, Holder.here("shardline prepare")):  # shards are not replaced under a run that reads them
        manifest = prepare(run.data, run.shards, run.model.path, run.seed, may_add_tokens=run.model.may_add_tokens)
    if not run.paths.plan.exists():  # once there is a plan, it is the configuration that training accepted
        with full_disk_named(run.paths.root):
            save_config(run)
    say(f"{summary(manifest)}\nnext: shardline train {named(options, run.paths)}")
    return EXIT_DONE
