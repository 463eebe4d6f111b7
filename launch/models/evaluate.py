"""`shardline evaluate`: score the base and the tuned model on held-out rows."""

from __future__ import annotations

import argparse

from cluster.disk.atomic_files import write_json
from cluster.errors import EXIT_DONE
from data_prep.shards import read_manifest
from launch.arguments import add_run
from launch.saved_config import load, origin_of
from launch.wording import named, say


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)


def run(options: argparse.Namespace) -> int:
    """Score the base and the tuned model on held-out rows."""
    from training.evaluate.evaluate import as_text, evaluate

    run = load(options)
    manifest = read_manifest(run.shards)
    result = evaluate(origin_of(run), run.paths.export, run.shards, manifest, run.evaluate, run.seed)
    write_json(run.paths.evaluation, result)
    say(f"{as_text(result)}\nnext: shardline report {named(options, run.paths)}")
    return EXIT_DONE
