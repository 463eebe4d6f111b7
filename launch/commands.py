"""One short function a verb: read the configuration, hand over to the package that does the work.

What imports torch is imported inside the verb that needs it: `shardline status` must not take seconds.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.environment import cpu_count, enter_world, gpu_count, read_world
from cluster.errors import EXIT_DONE
from cluster.files import write_json
from cluster.local_ranks import run_ranks
from cluster.schema import load_config
from cluster.stop import StopFlag
from data_prep.shards import read_manifest
from launch.config import RunConfig

if TYPE_CHECKING:
    from training.model import ModelOrigin

log = logging.getLogger(__name__)


def load_run(options: argparse.Namespace) -> RunConfig:
    """Return the run that the first argument names: a YAML file, or a run's folder with its config.yaml."""
    path: Path = options.run
    return load_config(RunConfig, path / "config.yaml" if path.is_dir() else path, options.overrides)


def train(options: argparse.Namespace) -> int:
    """Train as a rank if a launcher made this process one; else start the ranks of this machine."""
    run = load_run(options)
    world = read_world()
    if world is None:
        ranks = options.ranks or gpu_count() or run.train.cpu_ranks or min(2, cpu_count())
        if gpu_count() == 0:
            log.info("no GPU here: training on the CPU, ranks: %d", ranks)
        run.paths.stop_request.unlink(missing_ok=True)
        return run_ranks([sys.executable, "-m", "launch", *sys.argv[1:]], ranks)
    stop = StopFlag(run.paths.stop_request)
    stop.install()
    enter_world(world)
    from training.run import RunRequest, train_rank  # after enter_world: torch reads the environment when imported

    request = RunRequest(paths=run.paths, shards=run.shards, model=run.model, train=run.train, seed=run.seed)
    return train_rank(request, world, stop)


def export(options: argparse.Namespace) -> int:
    """Write the newest checkpoint as a Hugging Face folder."""
    from training.export import export as export_run

    run = load_run(options)
    export_run(origin_of(run), run.paths.checkpoints, run.export, run.paths.export)
    say(f"{run.paths.export}\nnext: shardline evaluate {options.run}, or shardline generate {options.run}")
    return EXIT_DONE


def evaluate(options: argparse.Namespace) -> int:
    """Score base and tuned model on held-out rows."""
    from training.evaluate import as_text
    from training.evaluate import evaluate as evaluate_run

    run = load_run(options)
    manifest = read_manifest(run.shards)
    result = evaluate_run(origin_of(run), run.paths.export, run.shards, manifest, run.evaluate, run.seed)
    write_json(run.paths.evaluation, result)
    say(f"{as_text(result)}\nnext: shardline report {options.run}")
    return EXIT_DONE


def generate(options: argparse.Namespace) -> int:
    """Answer the prompts of the command line, or each line of standard input."""
    from training.generate import answer, load_export, prompt_ids

    run = load_run(options)
    model, tokenizer = load_export(run.paths.export)
    as_chat = read_manifest(run.shards).conversational
    for prompt in options.prompt or (line.rstrip("\n") for line in sys.stdin):
        ids = prompt_ids(tokenizer, prompt, as_chat=as_chat)
        reply = answer(model, tokenizer, ids, tokens=options.tokens, temperature=options.temperature)
        say(f"> {prompt}\n{reply.text}" + ("" if reply.stopped else " [...]") + "\n")
    return EXIT_DONE


def report(options: argparse.Namespace) -> int:
    """Write the run's page."""
    from training.report import write_report

    run = load_run(options)
    say(str(write_report(run.paths, run.shards, run.name)))
    return EXIT_DONE


def status(options: argparse.Namespace) -> int:
    """Say where the run is."""
    from training.status import status_text

    say(status_text(load_run(options).paths))
    return EXIT_DONE


def inspect(options: argparse.Namespace) -> int:
    """Show the documents of a step."""
    from training.inspect import inspect_step

    run = load_run(options)
    lines = inspect_step(
        run.shards,
        options.step,
        global_batch_rows=run.train.global_batch_rows,
        seed=run.seed,
        characters=options.characters,
    )
    for line in lines:
        say(line)
    return EXIT_DONE


def origin_of(run: RunConfig) -> ModelOrigin:
    """Return what the run's model starts from."""
    from training.model import find_model

    return find_model(run.model, run.shards, read_manifest(run.shards))


def say(text: str) -> None:
    """Write a command's result to standard output."""
    sys.stdout.write(text + "\n")
