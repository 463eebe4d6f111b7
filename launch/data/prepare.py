"""`shardline prepare`: turn the corpus into shards, or show some rows of them."""

from __future__ import annotations

import argparse
import logging
import sys

from cluster.disk.atomic_files import full_disk_named
from cluster.disk.lock_holder import Holder
from cluster.disk.run_lock import hold_run
from cluster.errors import EXIT_DONE
from launch.arguments import add_run, positive
from launch.data.slurm_prepare import prepare_in_job
from launch.ranks.slurm_job import UNDER_SLURM
from launch.runs.check import check_source
from launch.saved_config import load, save_config
from launch.wording import named, say
from training.run_identity import trained_on_other_shards

log = logging.getLogger(__name__)


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.add_argument(
        "--preview", type=positive, metavar="N", help="show N rows and which tokens are trained; write nothing"
    )
    command.add_argument(
        UNDER_SLURM,
        action="store_true",
        help="for launch/prepare.sh: use all hosts of this Slurm job, by Ray",
    )


def run(options: argparse.Namespace) -> int:
    """Turn the corpus into shards, or show some rows of them."""
    run = load(options)
    check_source(run)
    if options.under_slurm:
        return prepare_in_job()
    from data_prep.prepare import prepare
    from data_prep.preview.row_preview import preview
    from data_prep.select.ledger import summary

    if options.preview is not None:
        colour = sys.stdout.isatty()
        adds = run.model.may_add_tokens
        say(preview(run.data, run.shards, run.model.path, options.preview, colour=colour, may_add_tokens=adds))
        return EXIT_DONE
    with hold_run(run.paths, Holder.here("shardline prepare")):  # shards are not replaced under a run that reads them
        manifest = prepare(run.data, run.shards, run.model.path, run.seed, may_add_tokens=run.model.may_add_tokens)
    if told := trained_on_other_shards(run.paths, manifest):
        log.warning("%s", told)
    if not run.paths.plan.exists():  # once there is a plan, it is the configuration that training accepted
        with full_disk_named(run.paths.root):
            save_config(run)
    say(f"{summary(manifest)}\nnext: shardline train {named(options, run.paths)}")
    return EXIT_DONE
