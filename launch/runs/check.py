"""Check what can be known of a run before it takes a machine."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.environment import gpu_count
from cluster.errors import EXIT_DONE, CheckpointError, ConfigError
from cluster.machine import cpu_count
from cluster.model_files import found_folder
from cluster.paths import COMMIT_FILE
from cluster.wording import count_of
from data_prep.encode.conversations import TEMPLATES, read_template
from data_prep.shards import MANIFEST, Manifest, check_shards, read_manifest, template_digest
from data_prep.shards.tokenizer_files import open_tokenizer
from launch.arguments import add_run
from launch.config import RunConfig
from launch.runs import layouts
from launch.runs.track import missing_trackers
from launch.saved_config import load
from launch.wording import say
from training.advice.slow_precision import slow_precision_warning
from training.checkpoints.room import require_room
from training.models.untrainable import check_architecture, check_trainable, missing_peft
from training.plan import Plan, make_plan
from training.run_identity import deal_of_run
from training.torch_probes import gpu_warning
from training.zero import ds_config

if TYPE_CHECKING:
    from training.models.source import ModelOrigin


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)
    layouts.add_arguments(command)


def run(options: argparse.Namespace) -> int:
    """Say what a run will do and need, here or on clusters of `--nodes`."""
    layouts.require_nodes(options)
    run = load(options)
    here = chain(check_run(run, local_ranks(run, None)), idle_keys(run))
    for line in layouts.layout_lines(run, options) if options.nodes else here:
        say(line)
    return EXIT_DONE


def local_ranks(run: RunConfig, asked: int | None) -> int:
    """Return how many ranks to start on this machine: those asked for, else one a GPU, else some on the CPU."""
    if asked is not None:
        return asked
    return gpu_count() or run.train.cpu_ranks or min(2, cpu_count())


def check_run(run: RunConfig, ranks: int) -> Iterator[str]:
    """Yield lines about the configuration, the data, the plan and the disk; raise the first problem."""
    ds_config.read_template(run.train.deepspeed)
    check_source(run)
    yield f"configuration  valid; the run goes to {run.paths.root}"
    yield f"machine        {count_of(cpu_count(), 'CPU')}, {count_of(gpu_count(), 'GPU')}; ranks: {ranks}"
    for text in missing_trackers(run):
        yield f"WARNING        {text}; the run goes on without it"
    yield from gpu_warning()
    for warning in (slow_precision_warning(run.train), missing_peft(lora=run.train.lora is not None)):
        if warning:
            yield f"WARNING        {warning}"
    if not (run.shards / MANIFEST).exists():
        from data_prep.preview.survey import survey

        yield from survey(run.data, run.model.path, may_add_tokens=run.model.may_add_tokens)
        yield from describe_model(run)
        yield "next           shardline prepare, then check again for the plan"
        return
    manifest = read_manifest(run.shards)
    check_fits(run, manifest)
    check_shards(run.shards, manifest.trained_from())
    for split, shards in manifest.splits.items():
        yield f"data           {split}: {count_of(manifest.rows(split), 'row')} in {count_of(len(shards), 'shard')}"
    from training.advice.run_warnings import run_warnings
    from training.models.source import find_model
    from training.step.balance import balance_lines, batches_of  # these import torch

    origin = find_model(run.model, run.shards, manifest, weights=is_folder(run.model.path))
    plan = make_plan(
        run.train,
        manifest,
        parameters=origin.parameters,
        trained_parameters=origin.trained_parameters(run.train),
        world_size=ranks,
        seed=run.seed,
    )
    plan = replace(plan, deal=deal_of_run(run.paths, manifest))
    yield plan.as_text()
    yield from balance_lines(batches_of(run.shards, manifest, plan), plan.total_steps)
    yield from layouts.machine_lines(run, origin, plan, manifest)
    yield from resized_line(origin)
    yield disk_line(run.paths.root, plan)
    for warning in run_warnings(origin, plan, manifest, run.model):
        yield f"WARNING        {warning}"


def idle_keys(run: RunConfig) -> Iterator[str]:
    """Yield a line for each key of the configuration that this machine cannot follow, or that does nothing here."""
    train = run.train
    needs = {"a GPU, and there is none here": gpu_count() > 0, "precision: bf16": train.precision == "bf16"}
    lacking = [need for need, is_met in needs.items() if not is_met]
    if train.attention == "varlen" and lacking:
        yield (
            f"WARNING        train.attention: varlen needs {' and '.join(lacking)}: `train` would end before the first"
            " step; set auto, which uses it where it can"
        )
    if train.hpz:
        fixed = layouts.template_of(run)[0] if train.deepspeed else train.zero_stage
        stage = f", and needs ZeRO stage 3, not {fixed}" if fixed in (1, 2) else ""
        only = ", and only forces ZeRO stage 3" if fixed == "auto" else ""
        yield (
            f"WARNING        train.hpz keeps no copy of the weights on one host{only}: it keeps one within each of"
            f" several{stage}; `shardline check --nodes` shows whether it is worth its memory"
        )


def check_source(run: RunConfig) -> None:
    """Raise ConfigError if the model that the run starts from is missing or cannot be trained. Imports no torch.

    The check of the architecture, which needs seconds of imports, is left to the ranks once there are shards.
    """
    if run.model.path is None:
        return
    folder = found_folder(run.model.path)
    check_trainable(folder, weights=is_folder(run.model.path))
    if not (run.shards / MANIFEST).exists():
        check_architecture(folder)


def describe_model(run: RunConfig) -> Iterator[str]:
    """Yield lines about the model that the run starts from, and the tokenizer and template of its rows.

    Raises ConfigError if the model cannot be trained, or does not fit the rows or the tokenizer.
    """
    from data_prep.encode.tokenizer import tokenizer_folder, with_template
    from training.models.source import look_at_model, made_config  # imports torch

    if run.model.new is not None:
        config = made_config(run.model.new, run.data.row_tokens, {})
        yield f"model          new: {config.model_type}"
        return
    tokenizer = open_tokenizer(tokenizer_folder(run.data, run.model.path))  # in full, as the model is inspected too
    template = run.data.chat_template or own_template(tokenizer)
    with_template(tokenizer, run.data, is_text=False, may_add_tokens=run.model.may_add_tokens)
    origin = look_at_model(run.model, tokenizer, run.data.row_tokens)
    yield f"model          {origin.folder}: {origin.config.model_type}, {origin.parameters:,} parameters"
    yield f"tokenizer      {len(tokenizer):,} tokens; chat template: {template}"
    yield from resized_line(origin)


def own_template(tokenizer: Any) -> str:
    """Return whether a tokenizer's own chat template can be used, and if not, why."""
    from data_prep.encode.tokenizer import choose_template

    name, reason = choose_template(tokenizer)
    return "its own" if name is None else f"none: {reason}; for conversations write `chat_template: {name}` below data"


def resized_line(origin: ModelOrigin) -> Iterator[str]:
    """Yield a line about resized embeddings, if they are resized."""
    if origin.stored_vocab_size is not None:
        now = origin.config.get_text_config().vocab_size
        yield f"embeddings     {origin.stored_vocab_size:,} become {now:,}; new ones start as the mean of the old"


def is_folder(path: str | None) -> bool:
    """Return whether a model is a folder here; only then are its weights checked, as a check fetches none."""
    return path is not None and Path(path).expanduser().is_dir()


def check_fits(run: RunConfig, manifest: Manifest) -> None:
    """Raise ConfigError if the shards were prepared with another row length or chat template than configured."""
    if manifest.row_tokens != run.data.row_tokens:
        raise ConfigError(
            f"data.row_tokens: {run.data.row_tokens}, but the shards in {run.shards} have {manifest.row_tokens};"
            " run `shardline prepare` again"
        )
    name = run.data.chat_template
    is_ours = manifest.conversational and name in TEMPLATES
    if is_ours and template_digest(read_template(name, None)) != manifest.template_digest:
        raise ConfigError(
            f"data.chat_template: {name}, but the shards in {run.shards} were prepared with another template;"
            " run `shardline prepare` again"
        )


def disk_line(root: Path, plan: Plan) -> str:
    """Return a line about the space that checkpoints need and the disk has. Raises ConfigError if they do not fit."""
    saves = plan.checkpoints_at_once()
    saved = len([*root.glob(f"checkpoints/step-*/{COMMIT_FILE}")])
    try:
        takes = require_room(root, plan.checkpoint_bytes, max(1, saves - saved))
    except CheckpointError as error:
        told = f"train.keep_last, train.keep_every_steps: {error}; keep fewer, or choose another folder"
        raise ConfigError(told) from None
    return f"disk           {count_of(saves, 'checkpoint')} at a time: {takes}"
