"""One short function a verb: read the configuration, hand over to the package that does the work.

What imports torch is imported inside the verb that needs it: `shardline status` must not take seconds.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.disk.atomic_files import full_disk_named, write_json
from cluster.disk.lock_holder import Holder
from cluster.disk.run_lock import hold_run, hold_run_for_rank
from cluster.environment import LOCK, World, allocation_end, cpu_count, enter_world, gpu_count, read_world
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ACTION, ConfigError
from cluster.journal import world_size_at
from cluster.local_launcher import run_ranks
from cluster.restart_limit import note_interruption, note_launch
from cluster.stop_request import StopFlag
from data_prep.shards import MANIFEST, check_shards, read_manifest
from launch.config import RunConfig
from launch.kept import keep_config, kept_text, load_run, origin_of
from launch.verbs.check import check_fits, check_source
from launch.wording import as_typed, named, say, with_run_named
from training.plan import identity_of
from training.run_identity import check_identity, committed_identity

if TYPE_CHECKING:
    from training.train_rank import RunRequest

log = logging.getLogger(__name__)

TRAINING = "shardline train"  # what the run's lock says of who holds it


def load(options: argparse.Namespace) -> RunConfig:
    """Return the run that the first argument names: a YAML file, or a run's folder."""
    return load_run(options.run, options.overrides, getattr(options, "from_run", None))


def init(options: argparse.Namespace) -> int:
    """Write a YAML to begin with."""
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
    if not run.paths.plan.exists():  # from then on it is the configuration that training has accepted
        with full_disk_named(run.paths.root):
            keep_config(run)
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
    run = load(options)
    if options.launching:
        with hold_run(run.paths, Holder.here("launch/train.sh")):
            check_goes_on(run)
            note_launch(run.paths)
        say(str(run.paths.stop_request))
        return EXIT_DONE
    manifest = read_manifest(run.shards)
    check_fits(run, manifest)
    world = read_world()
    if world is None:
        check_source(run)
        check_shards(run.shards, manifest.trained_from())
        return start_ranks(run, options)
    with hold_run_for_rank(run.paths, world, TRAINING):
        check_goes_on(run)
        return train_as_rank(run, world)


def train_as_rank(run: RunConfig, world: World) -> int:
    """Train as one rank of a run that is this launch's alone."""
    stop = StopFlag(run.paths.stop_request, allocation_end())
    stop.install()
    enter_world(world)
    from training.train_rank import train_rank  # after enter_world: torch reads the environment when imported

    return train_rank(rank_request(run), world, stop)


def check_goes_on(run: RunConfig) -> None:
    """Raise CheckpointError at once, before anything is started, if the newest checkpoint is not of this run.

    What only the model can tell, the ranks find out when they load it.
    """
    found = committed_identity(run.paths.checkpoints)
    if found is None:
        return
    folder, then, step = found
    manifest = read_manifest(run.shards)
    now = identity_of(run.train, manifest.content_digest, run.seed)
    check_identity(then, now, folder, steps_done=step, rows=manifest.rows("train"))


def start_ranks(run: RunConfig, options: argparse.Namespace) -> int:
    """Run this very command as every rank of this machine; with --restart again after a failure, if it helps."""
    ranks = local_ranks(run, options.ranks)
    holder = Holder.here(TRAINING)
    with hold_run(run.paths, holder):
        check_goes_on(run)
        if gpu_count() == 0:
            log.info("no GPU here: training on the CPU, ranks: %d", ranks)
        run.paths.stop_request.unlink(missing_ok=True)  # it ended the run before this one
        code = run_until_it_helps_no_more(run, ranks, holder, restart=options.restart)
    if code == EXIT_DONE:
        say(f"next: shardline export {named(options, run.paths)}")
    if code in (EXIT_STOPPED, EXIT_FAILED, EXIT_INTERRUPTED):
        say(f"to go on from the newest checkpoint: shardline train {as_typed(options)}")
    return code


def run_until_it_helps_no_more(run: RunConfig, ranks: int, holder: Holder, *, restart: bool) -> int:
    """Start the ranks, and with `restart` start them again as long as they fail and come to new steps."""
    command = [sys.executable, "-m", "launch", *sys.argv[1:]]
    while True:
        note_launch(run.paths)
        code = run_ranks(command, ranks, {LOCK: holder.id})
        if code == EXIT_INTERRUPTED:
            note_interruption(run.paths)
        if code != EXIT_FAILED or not restart or run.paths.stop_request.exists():
            return code
        log.warning("starting the ranks again")


def local_ranks(run: RunConfig, asked: int | None) -> int:
    """Return how many ranks to start here: one a GPU, or some on the CPU."""
    return asked or gpu_count() or run.train.cpu_ranks or min(2, cpu_count())


def checkpoint(options: argparse.Namespace) -> int:
    """List, check, show, keep or import checkpoints."""
    from launch.verbs.checkpoint import ACTIONS

    return ACTIONS[options.action](load(options), options)


def verify_resume(options: argparse.Namespace) -> int:
    """Train a few steps, interrupted and not, and say whether they are the same."""
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
    """Export a run that is ours alone."""
    from training.outcome.export import Partial
    from training.outcome.export import export as export_checkpoint

    origin = origin_of(run)
    partial = Partial(origin=origin, seed=run.seed, lora=run.train.lora)
    export_checkpoint(origin, run.paths.checkpoints, run.export, run.paths.export, partial)


def evaluate(options: argparse.Namespace) -> int:
    """Score base and tuned model on held-out rows."""
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
            raise ConfigError("--prompt: is empty; give the text that the model is to go on from")
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
    """Say where the run is."""
    from training.reporting.status import status_text

    say(with_run_named(status_text(load(options).paths), options))
    return EXIT_DONE


def inspect(options: argparse.Namespace) -> int:
    """Show the documents of a step, or take it once more."""
    run = load(options)
    if options.replay:
        return replay(run, options)
    from launch.verbs.inspect import inspect_step

    for line in inspect_step(run, options.step, characters=options.characters, originals=options.originals):
        say(line)
    return EXIT_DONE


def replay(run: RunConfig, options: argparse.Namespace) -> int:
    """Take a step once more: as a rank if we were started as one, else by as many ranks as took it."""
    world = read_world()
    if world is None:
        return run_ranks([sys.executable, "-m", "launch", *sys.argv[1:]], world_size_at(run.paths, options.step))
    enter_world(world)
    from training.replay import replay_rank

    for line in replay_rank(rank_request(run), world, options.step):
        if world.is_first:
            say(line)
    return EXIT_DONE


def rank_request(run: RunConfig) -> RunRequest:
    """Return what a rank needs of the configuration."""
    from training.train_rank import RunRequest

    return RunRequest(
        paths=run.paths, config=kept_text(run), shards=run.shards, model=run.model, train=run.train, seed=run.seed
    )
