"""`shardline inspect`: show which documents were in a step, with their text, or repeat it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence

from cluster.config_loading import parse_override
from cluster.environment import enter_world, gpu_count, read_world
from cluster.errors import EXIT_DONE, ConfigError, DataError
from cluster.journal.records import read_metrics, world_size_at
from cluster.wording import count_of
from data_prep.documents import shortened
from data_prep.fetch.provenance import document_place, read_document
from data_prep.shards import ShardReader, read_manifest
from data_prep.shards.tokenizer_files import open_tokenizer
from launch.arguments import add_run, positive
from launch.config import RunConfig
from launch.ranks.this_command import run_as_ranks
from launch.runs.train import rank_request
from launch.saved_config import load
from launch.wording import say
from training.order import order_of
from training.plan import steps_of
from training.run_identity import batches_of_run, committed_identity, trained_on_other_shards


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.add_argument("--step", type=positive, required=True, help="the step, from 1")
    command.add_argument("--replay", action="store_true", help="repeat the step and compare its loss; changes nothing")
    command.add_argument("--originals", action="store_true", help="show documents as they are in their files")
    command.add_argument(
        "--characters", type=positive, default=200, help="characters shown of each document (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    """Show the documents of a step, or repeat it."""
    run = load(options)
    if options.replay:
        return replay(run, options)
    for line in inspect_step(run, options.step, characters=options.characters, originals=options.originals):
        say(line)
    return EXIT_DONE


def replay(run: RunConfig, options: argparse.Namespace) -> int:
    """Repeat a step: as a rank if this process was started as one, else with as many ranks as took it.

    Where there are fewer GPUs, with one rank on each: the comparison tells it.
    """
    world = read_world()
    if world is None:
        ranks = world_size_at(run.paths, options.step)
        return run_as_ranks(min(ranks, gpu_count() or ranks))
    enter_world(world)
    from training.replay import replay_rank

    for line in replay_rank(rank_request(run), world, options.step, asked_of_train(options.overrides)):
        if world.is_first:
            say(line)
    return EXIT_DONE


def asked_of_train(overrides: Sequence[str]) -> set[str]:
    """Return the keys of `train` that overrides set, one by one or as a mapping."""
    return {key for override in overrides for key in parse_override(override).get("train", {})}


def check_batches(run: RunConfig, step: int) -> None:
    """Raise ConfigError if the run took its steps with other batches than its configuration now says."""
    now = run.train.global_batch_rows, run.seed
    then = batches_of_run(run.paths) or now
    names = "train.global_batch_rows", "seed"
    changed = [
        f"{name} was {was}, is {is_now}" for name, was, is_now in zip(names, then, now, strict=True) if was != is_now
    ]
    if changed:
        raise ConfigError(
            f"{run.paths.root} took its steps with other rows: {'; '.join(changed)}. To see the rows that it took, name"
            " its folder instead of the YAML file, without -o:"
            f" shardline inspect {shlex.quote(str(run.paths.root))} --step {step}"
        )


def unusual(run: RunConfig, step: int, rows: int) -> Iterator[str]:
    """Yield a line about a step that changed no weight, or has not been taken.

    Raises ConfigError for a step that the run does not have.
    """
    taken = {int(line["step"]): line for line in read_metrics(run.paths.metrics)}
    newest = committed_identity(run.paths.checkpoints)
    total, last = steps_of(run.train, rows), max([*taken, newest[2] if newest else 0])
    if step > max(total, last):
        raise ConfigError(f"--step {step}: the run has {count_of(total, 'step')}; give one from 1 to {total}")
    if step > last:
        yield f"step {step} has not been taken: {count_of(last, 'step')} done; these rows will be in it"
    elif reason := taken.get(step, {}).get("skipped"):
        yield f"step {step} was skipped, and its rows changed no weight: {reason}"


def inspect_step(run: RunConfig, step: int, *, characters: int, originals: bool) -> Iterator[str]:
    """Yield lines about the rows of a step (from 1): each row, and for each segment its document and its text.

    The text is decoded from the tokens that the model saw; with `originals`, it is the document as it is in its file.
    """
    manifest = read_manifest(run.shards)
    if told := trained_on_other_shards(run.paths, manifest):
        raise DataError(told)
    check_batches(run, step)
    reader = ShardReader(run.shards, manifest, "train", verify=False)
    order = order_of(manifest, run.train.global_batch_rows, run.seed)
    yield from unusual(run, step, order.row_count)
    relative_to = {source.label: source.relative_to for source in run.data.sources}
    tokenizer = open_tokenizer(run.shards / "tokenizer")
    for place, row in enumerate(order.rows_of_step(step - 1)):
        arrays = reader.rows([row])
        yield f"row {row}, place {place} of the batch, {count_of(int(arrays.loss_mask.sum()), 'trained token')}"
        first = 0
        for piece in reader.pieces(row):
            ids = arrays.input_ids[0, first : first + piece.tokens].tolist()
            first += piece.tokens
            start = f", from its token {piece.start}" if piece.start else ""
            where = document_place(manifest.files[piece.source], piece.position)
            text = tokenizer.decode(ids)
            if originals:
                base = relative_to.get(manifest.files[piece.source].source)
                text = read_document(run.shards, manifest, piece.source, piece.position, base)
            shown = shortened(" ".join(text.split()), characters)
            yield f"  {where}{start}, {count_of(piece.tokens, 'token')}: {shown}"
