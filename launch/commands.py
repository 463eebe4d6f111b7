"""One short function a verb: read the configuration and call the package that does the work.

Modules that import torch are imported inside the verb that needs them: `shardline status` must not take seconds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.disk.atomic_files import full_disk_named, write_json
from cluster.disk.lock_holder import Holder
from cluster.disk.run_lock import hold_run
from cluster.errors import EXIT_DONE, EXIT_USER_ACTION, ConfigError
from data_prep.shards import MANIFEST, read_manifest
from launch.config import RunConfig
from launch.saved_config import load_run, origin_of, save_config
from launch.verbs.check import check_fits, check_source
from launch.verbs.train import local_ranks, replay, train_run
from launch.wording import named, say, with_run_named


def load(options: argparse.Namespace) -> RunConfig:
    """Return the run that the first argument names: a YAML file, or a run's folder."""
    return load_run(options.run, options.overrides, getattr(options, "from_run", None))


def init(options: argparse.Namespace) -> int:
    """Write a commented YAML for a first run."""
    from launch.verbs.init import write_init

    say(write_init(options.kind, options.data, options.model, options.output))
    return EXIT_DONE


def check(options: argparse.Namespace) -> int:
    """Say what a run will do and need."""
    from launch.verbs.check import check_run

    run = load(options)
    for line in check_run(run, local_ranks(run, None)):
        say(line)
    return EXIT_DONE


def prepare(options: argparse.Namespace) -> int:
    """Turn the corpus into shards, or show some rows of them."""
    from data_prep.prepare import prepare as prepare_data
    from data_prep.preview.row_preview import preview
    from data_prep.select.ledger import summary

    run = load(options)
    check_source(run)
    if options.preview is not None:
        colour = sys.stdout.isatty()
        adds = run.model.may_add_tokens
        say(preview(run.data, run.shards, run.model.path, options.preview, colour=colour, may_add_tokens=adds))
        return EXIT_DONE
    manifest = prepare_data(run.data, run.shards, run.model.path, run.seed, may_add_tokens=run.model.may_add_tokens)
    if not run.paths.plan.exists():  # once there is a plan, it is the configuration that training accepted
        with full_disk_named(run.paths.root):
            save_config(run)
    say(f"{summary(manifest)}\nnext: shardline train {named(options, run.paths)}")
    return EXIT_DONE


def verify(options: argparse.Namespace) -> int:
    """Check every byte of a run's data, or of a data folder."""
    from data_prep.verify import verified_bytes
    from data_prep.verify import verify as verify_data

    folder: Path = options.run if (options.run / MANIFEST).is_file() else load(options).shards
    problems = verify_data(folder)
    for problem in problems:
        say(problem)
    if problems:
        return EXIT_USER_ACTION
    manifest = read_manifest(folder)
    say(f"{folder}: {verified_bytes(manifest):,} bytes, every byte is as the manifest says ({manifest.digest[:16]})")
    return EXIT_DONE


def train(options: argparse.Namespace) -> int:
    """Train as a rank if a launcher made this process one; else start the ranks of this machine."""
    return train_run(load(options), options)


def checkpoint(options: argparse.Namespace) -> int:
    """List, check, show, keep or import checkpoints."""
    from launch.verbs.checkpoint import ACTIONS

    return ACTIONS[options.action](load(options), options)


def verify_resume(options: argparse.Namespace) -> int:
    """Train a few steps with and without an interruption, and compare them."""
    from launch.verbs.verify_resume import as_text
    from launch.verbs.verify_resume import verify_resume as prove

    run = load(options)
    check_fits(run, read_manifest(run.shards))
    ranks = local_ranks(run, options.ranks)
    other = options.other_ranks or (1 if ranks > 1 else 2)
    with hold_run(run.paths, Holder.here("shardline verify-resume")):
        certificate = prove(run, options.steps, ranks, other)
    say(f"{as_text(certificate)}\n{run.paths.certificate}")
    same = certificate["bit_identical"] and certificate["other_ranks_within_tolerance"]
    return EXIT_DONE if same else EXIT_USER_ACTION


def export(options: argparse.Namespace) -> int:
    """Write the newest checkpoint as a Hugging Face folder."""
    run = load(options)
    with hold_run(run.paths, Holder.here("shardline export")):  # before torch is imported, which takes seconds
        export_run(run)
    again = named(options, run.paths)
    say(f"{run.paths.export}\nnext: shardline evaluate {again}, or shardline generate {again}")
    return EXIT_DONE


def export_run(run: RunConfig) -> None:
    """Export a run that this process holds."""
    from training.outcome.export import Partial
    from training.outcome.export import export as export_checkpoint

    origin = origin_of(run)
    partial = Partial(origin=origin, seed=run.seed, lora=run.train.lora)
    export_checkpoint(origin, run.paths.checkpoints, run.export, run.paths.export, partial)


def evaluate(options: argparse.Namespace) -> int:
    """Score the base and the tuned model on held-out rows."""
    from training.outcome.evaluate import as_text
    from training.outcome.evaluate import evaluate as evaluate_run

    run = load(options)
    manifest = read_manifest(run.shards)
    result = evaluate_run(origin_of(run), run.paths.export, run.shards, manifest, run.evaluate, run.seed)
    write_json(run.paths.evaluation, result)
    say(f"{as_text(result)}\nnext: shardline report {named(options, run.paths)}")
    return EXIT_DONE


def generate(options: argparse.Namespace) -> int:
    """Answer the prompts of the command line, or each line of standard input."""
    from training.outcome.generate import answer, load_export, prompt_ids

    run = load(options)
    model, tokenizer = load_export(run.paths.export)
    as_chat = read_manifest(run.shards).conversational
    for prompt in options.prompt or (line.rstrip("\n") for line in sys.stdin):
        ids = prompt_ids(tokenizer, prompt, as_chat=as_chat)
        if not ids:
            raise ConfigError("--prompt: empty; give the text that the model is to continue")
        reply = answer(model, tokenizer, ids, tokens=options.tokens, temperature=options.temperature)
        say(f"> {prompt}\n{reply.text}" + ("" if reply.stopped else " [...]") + "\n")
    return EXIT_DONE


def report(options: argparse.Namespace) -> int:
    """Write the run's page."""
    from training.reporting.report import write_report

    run = load(options)
    say(str(write_report(run.paths, run.shards, run.name)))
    return EXIT_DONE


def status(options: argparse.Namespace) -> int:
    """Report the state of the run."""
    from training.reporting.status import status_text

    say(with_run_named(status_text(load(options).paths), options))
    return EXIT_DONE


def inspect(options: argparse.Namespace) -> int:
    """Show the documents of a step, or repeat it."""
    run = load(options)
    if options.replay:
        return replay(run, options)
    from launch.verbs.inspect import inspect_step

    for line in inspect_step(run, options.step, characters=options.characters, originals=options.originals):
        say(line)
    return EXIT_DONE
