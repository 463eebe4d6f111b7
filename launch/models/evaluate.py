"""`shardline evaluate`: compare the base and the tuned model on held-out data."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.disk.atomic_files import write_json
from cluster.environment import enter_world, read_world
from cluster.errors import EXIT_DONE, CheckpointError, ConfigError, DataError
from cluster.network.world import World
from cluster.paths import RunPaths
from cluster.progress import Waiting
from data_prep.shards import ShardReader, read_manifest
from data_prep.shards.tokenizer_files import open_tokenizer
from launch.arguments import add_run, positive
from launch.config import RunConfig
from launch.models import data_probes
from launch.models.export_origin import doubt_of, require_own
from launch.models.named_model import is_model
from launch.ranks.this_command import run_as_ranks
from launch.saved_config import load, origin_of
from launch.wording import named, say

if TYPE_CHECKING:
    from training.evaluate.evaluate import Request

log = logging.getLogger(__name__)


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.add_argument(
        "--tasks",
        action="append",
        default=[],
        metavar="TASKS",
        help="also run these tasks of lm-evaluation-harness, offline: names with commas, or a task's own YAML file;"
        " repeatable",
    )
    command.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER",
        help="score this form of the run's export instead, such as its export-int8; the files get that name",
    )
    command.add_argument("--limit", type=positive, help="documents a task, for a first try")
    command.add_argument(
        "--ranks", type=positive, help="partition the models over so many processes of this machine (ZeRO-3)"
    )


def run(options: argparse.Namespace) -> int:
    """Evaluate in this process, as a rank if a launcher made it one, or start the ranks."""
    run = load(options)
    world = read_world()
    tasks = tasks_of(options)
    if world is not None:
        enter_world(world)  # before torch is imported
    ranks = world.size if world is not None else options.ranks or 1
    with Waiting("importing torch and transformers", is_shown=world is None):
        request = request_of(run, options.export, in_ranks=ranks > 1)
    if world is None:
        doubt = "" if options.export is None else doubt_of(run.paths, options.export)
        if doubt:
            log.warning("%s; it is scored beside this run's base, and the verdict is this run's", doubt)
        else:
            warn_if_older(run.paths, request.export)
        if ranks > 1:  # what can be refused was refused here, once and not by each rank
            return run_as_ranks(ranks)
    result = evaluated(run, request, world)
    if world is None or world.is_first:
        finish(options, run, request, result, tasks)
    return EXIT_DONE


def tasks_of(options: argparse.Namespace) -> list[str]:
    """Return the tasks, checked before the models are loaded."""
    if not options.tasks:
        if options.limit:
            raise ConfigError("--limit: says how many documents of each of the --tasks; name some, or remove it")
        return []
    from training.evaluate.harness import check_tasks

    return check_tasks([task for text in options.tasks for task in text.split(",") if task])


def request_of(run: RunConfig, named: Path | None, *, in_ranks: bool) -> Request:
    """Return what is evaluated.

    Raises CheckpointError if the export does not fit the rows or is another run's, DataError if none are held out,
    ConfigError if its integer weights were to be partitioned over ranks.
    """
    from training.evaluate.evaluate import Request
    from training.evaluate.models import check_export
    from training.generate.loading import is_quantized

    manifest = read_manifest(run.shards)
    export = named or run.paths.export
    if not is_model(export):
        raise CheckpointError(f"{export}: no exported model here; run `shardline export RUN.yaml` first")
    if in_ranks and is_quantized(export):
        raise ConfigError(f"--ranks: {export} has integer weights, which cannot be partitioned; remove --ranks")
    if named is not None:
        require_own(run.paths, named)
    origin = origin_of(run)
    check_export(export, open_tokenizer(export), manifest, origin.tokenizer)
    if manifest.rows("validation") == 0:
        raise DataError("no held-out rows: raise data.validation_fraction and run `shardline prepare RUN.yaml` again")
    return Request(
        origin=origin,
        export=export,
        shards=run.shards,
        manifest=manifest,
        config=run.evaluate,
        seed=run.seed,
    )


def evaluated(run: RunConfig, request: Request, world: World | None) -> dict[str, Any]:
    """Return the evaluation. Collective if there is a world."""
    from training.evaluate.evaluate import evaluate
    from training.evaluate.models import LocalModels

    if world is None or world.size == 1:
        return evaluate(request, LocalModels(request.origin, request.export, request.reader(), run.seed))
    from training.evaluate.ranks import PartitionedModels
    from training.zero.engine import join_world, leave_world

    join_world(world)
    result = evaluate(request, PartitionedModels(request, run.train, world))
    leave_world()
    return result


def finish(
    options: argparse.Namespace, run: RunConfig, request: Request, result: dict[str, Any], tasks: list[str]
) -> None:
    """Add the probes, the tasks and the verdict; write and print everything."""
    from training.evaluate.tables import as_text, task_table, write_samples

    result["verdict"] = verdict_of(run.paths)
    result["data"] = data_probes.probe(
        ShardReader(run.shards, request.manifest, "train"),
        request.manifest,
        request.origin.tokenizer,
        result["samples"],
        run.evaluate.probed_rows,
    )
    output = run.paths.beside(run.paths.evaluation, request.export)
    write_json(output, result)  # the tasks may take long, and may fail
    say("\n".join([as_text(result), *data_probes.as_lines(result["data"])]))
    replies = run.paths.beside(run.paths.root / "samples.md", request.export)
    if result["samples"]:
        write_samples(result, replies, replies.with_suffix(".jsonl"))
        say(f"replies side by side: {replies}, and as JSONL for other judges: {replies.with_suffix('.jsonl')}")
    if tasks:
        from training.evaluate.harness import TaskRequest, run_tasks

        log.info("running lm-evaluation-harness on both models, offline: %s", ", ".join(tasks))
        asked = TaskRequest(tasks=tasks, as_chat=request.manifest.conversational, limit=options.limit)
        result["tasks"] = run_tasks(asked, request.origin, request.export, run.seed)
        write_json(output, result)
        say("\n".join(task_table(result["tasks"])))
    say(f"next: shardline report {named(options, run.paths)}")


def verdict_of(paths: RunPaths) -> dict[str, Any]:
    """Return what is said of the run's own losses."""
    from training.evaluate.verdict import verdict
    from training.reporting.run_state import read_state

    state = read_state(paths)
    train = [(line["step"], line["loss"]) for line in state.lines if "skipped" not in line]
    found = verdict(train, sorted(state.validation.items()))
    return {"kind": found.kind, "text": found.text, "best_step": found.best_step}


def warn_if_older(paths: RunPaths, export: Path) -> None:
    """Warn if there is a newer checkpoint than the one that was exported, or if the export does not tell."""
    from training.export.export_record import RECORD, newer_step, read_record

    again = "to score the newest checkpoint, run `shardline export` first"
    if not (export / RECORD).is_file():
        log.warning("%s does not tell its step, as an earlier version wrote it; %s", export, again)
        return
    record = read_record(export)
    newest = newer_step(record, paths.checkpoints)
    if newest is not None:
        log.warning(
            "%s is of step %d, and there is a checkpoint of step %d; %s", export.name, record.step, newest, again
        )
