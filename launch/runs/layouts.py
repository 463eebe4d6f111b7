"""What a run is predicted to cost on clusters that are not here, from its YAML and its model's config.json alone."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.environment import gpu_count
from cluster.errors import ConfigError, ShardlineError
from cluster.model_files import CONFIG, found_folder, read_settings
from cluster.wording import count_of
from data_prep.shards import MANIFEST, Manifest, ShardReader, read_manifest
from launch.config import RunConfig
from training.costs.gpus import KINDS, NETWORK_FORMS, Cluster, kind_of_device, parse_gpus, parse_network
from training.costs.layouts import Misfit, Wanted, predict
from training.costs.memory import Offload
from training.costs.saving import STORAGE
from training.costs.shapes import ModelShape, as_trained, shape_of_config, shape_of_skeleton
from training.costs.speed import Work
from training.costs.table import explained, state_line, table, wrapped
from training.plan import Plan, steps_of
from training.zero import ds_config

if TYPE_CHECKING:
    from training.models.source import ModelOrigin

GPUS = "h200:8"
SAMPLED_ROWS = 256  # of the shards, for the documents' lengths
DENSE = ("sdpa", "eager")  # values of train.attention
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is known of the rows: their number if it is, what a token is to attention and loss, and how to say it."""

    rows: int | None
    work: Work
    said: str


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options that describe clusters."""
    about = command.add_argument_group("clusters that are not here", "predict memory, speed and hours side by side")
    about.add_argument("--nodes", type=node_counts, metavar="N,N", help="numbers of nodes, such as 1,2,4,8")
    about.add_argument("--gpus", metavar="KIND:N", help=f"GPUs per node; default {GPUS}; kinds: {', '.join(KINDS)}")
    about.add_argument("--network", metavar="RATE", help=f"{NETWORK_FORMS}; default: what the maker's node has")
    storage = f"per node, to write checkpoints; default {STORAGE / 1e9:g}"
    about.add_argument("--storage", type=positive_number, metavar="GB/S", help=storage)
    about.add_argument(
        "--tokens", type=token_count, metavar="N", help="tokens of the data, such as 10B, where it is not prepared"
    )


def node_counts(text: str) -> list[int]:
    """Parse numbers of nodes."""
    if not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers of nodes such as 1,2,4,8")
    return sorted({int(word) for word in text.split(",")})


def token_count(text: str) -> int:
    """Parse a number of tokens."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", text.upper().replace(",", ""))
    count = round(float(found[1]) * UNITS[found[2]]) if found else 0
    if not count:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens such as 300M or 10B")
    return count


def positive_number(text: str) -> float:
    """Parse a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def require_nodes(options: argparse.Namespace) -> None:
    """Raise ConfigError if a cluster is described, but not how many nodes to look at."""
    given = [name for name in ("gpus", "network", "storage", "tokens") if getattr(options, name) is not None]
    if given and not options.nodes:
        raise ConfigError(
            f"--{given[0]}: describes a cluster that is not here; say of how many nodes, as --nodes 1,2,4"
        )


def layout_lines(run: RunConfig, options: argparse.Namespace) -> Iterator[str]:
    """Yield what a run is predicted to need on each number of nodes. Takes no machine and fetches no weights."""
    kind, per_node = parse_gpus(options.gpus or GPUS)
    network = parse_network(options.network) if options.network else kind.network_gbit * per_node / 8
    clusters = [
        Cluster(kind=kind, nodes=nodes, gpus_per_node=per_node, network_gbit=network) for nodes in options.nodes
    ]
    if run.train.precision != "bf16":
        raise ConfigError(f"train.precision: {run.train.precision}: step times are predicted for bf16 alone; set bf16")
    shape = shape_of(run)
    yield model_line(run, shape)
    check_positions(run, shape)
    data = yield from data_of(run, options.tokens)
    wanted = wanted_of(run)
    steps = run.train.steps if data.rows is None else steps_of(run.train, data.rows)
    yield wrapped("data", data.said)
    batch_tokens = wanted.global_batch_rows * wanted.row_tokens
    length = count_of(steps, "step") if steps is not None else "unknown number of steps: give --tokens"
    yield f"length         {length} of {count_of(wanted.global_batch_rows, 'row')} = {batch_tokens:,} tokens"
    yield from fixed_line(wanted)
    yield from attention_line(run)
    yield ""
    storage = options.storage * 1e9 if options.storage else STORAGE
    yield from table(
        [predict(shape, attended(run, data.work), wanted, cluster, storage) for cluster in clusters], steps
    )
    yield ""
    yield from explained(shape, clusters[0], storage)


def shape_of(run: RunConfig) -> ModelShape:
    """Return the shape of the run's model with what is trained; torch is imported only where it must build a skeleton.

    Raises ConfigError if there is no such model.
    """
    if run.model.path is None:
        return shape_by_skeleton(run, None)
    folder = found_folder(run.model.path)
    config = read_settings(folder / CONFIG)
    if not config:
        raise ConfigError(f"model.path: {folder} has no {CONFIG}; it is all that is needed here")
    known = shape_of_config(config)
    return shape_by_skeleton(run, folder) if known is None else as_trained(known, run.train)


def shape_by_skeleton(run: RunConfig, folder: Path | None) -> ModelShape:
    """Return the shape of any architecture of transformers, by building it without memory for its weights."""
    from training.models.source import ModelOrigin, made_config, read_config  # these import torch

    if folder is not None:
        config = read_config(folder, weights=False)
    else:
        assert run.model.new is not None
        config = made_config(run.model.new, run.data.row_tokens, {"vocab_size": vocabulary_of(run)})
    return shape_of_origin(run, ModelOrigin(config=config, tokenizer=None, folder=folder))


def shape_of_origin(run: RunConfig, origin: ModelOrigin) -> ModelShape:
    return shape_of_skeleton(origin.trained_skeleton(run.train), origin.config)


def vocabulary_of(run: RunConfig) -> int:
    """Return the vocabulary of a new model: of its shards, else as its tokenizer is to be trained or comes."""
    if (run.shards / MANIFEST).exists():
        return read_manifest(run.shards).vocab_size
    tokenizer = run.data.tokenizer
    if tokenizer is not None and tokenizer.train is not None:
        return tokenizer.train.vocab_size
    from data_prep.encode.tokenizer import tokenizer_folder
    from data_prep.shards.tokenizer_files import open_tokenizer, vocabulary_size

    return int(vocabulary_size(open_tokenizer(tokenizer_folder(run.data, None))))


def model_line(run: RunConfig, shape: ModelShape) -> str:
    said = f"{shape.model_type}, {shape.total:,} parameters"
    if run.train.lora is not None:
        said = f"{shape.model_type}, {shape.total - shape.trained:,} parameters, {shape.trained:,} in adapters"
    elif shape.trained != shape.total:
        said += f", {shape.trained:,} of them trained"
    return f"model          {said}"


def check_positions(run: RunConfig, shape: ModelShape) -> None:
    """Raise ConfigError if rows are longer than the model's positions."""
    if shape.positions is not None and run.data.row_tokens > shape.positions:
        raise ConfigError(
            f"data.row_tokens: {run.data.row_tokens} is longer than the model's {shape.positions} positions; lower it"
        )


def data_of(run: RunConfig, tokens: int | None) -> Generator[str, None, Data]:
    """Yield the lines of a survey if the data is neither prepared nor its size given; return what is known of it."""
    if (run.shards / MANIFEST).exists():
        return prepared_data(run, read_manifest(run.shards))
    if tokens is None and run.train.steps is None:
        tokens = yield from surveyed_tokens(run)
    rows = None if tokens is None else math.ceil(tokens / run.data.row_tokens)
    told = "an unknown number of rows" if rows is None else f"about {count_of(rows, 'row')}"
    said = (
        f"{told} of {run.data.row_tokens:,} tokens; not prepared, so one document a row and a loss on"
        " every token are assumed: the most that attention and loss can cost"
    )
    return Data(rows=rows, work=Work(context=run.data.row_tokens), said=said)


def surveyed_tokens(run: RunConfig) -> Generator[str, None, int | None]:
    """Yield what a survey of the corpus finds; return its estimate of the tokens, None if it has none."""
    from data_prep.preview.survey import Estimate, survey

    found: list[Estimate] = []
    try:
        yield from survey(run.data, run.model.path, may_add_tokens=run.model.may_add_tokens, estimated=found.append)
    except ShardlineError as error:
        raise type(error)(f"{error}; or give --tokens, such as 10B, to predict without the data") from None
    return round(found[0].tokens) if found else None


def prepared_data(run: RunConfig, manifest: Manifest) -> Data:
    """Return what the shards say; documents' lengths are those of rows spread evenly over the training split."""
    if manifest.row_tokens != run.data.row_tokens:
        raise ConfigError(
            f"data.row_tokens: {run.data.row_tokens}, but the shards in {run.shards} have {manifest.row_tokens};"
            " run `shardline prepare` again"
        )
    rows = manifest.rows("train")
    if rows == 0:
        raise ConfigError("data: the training split has no rows; add documents, or lower validation_fraction")
    numbers = sorted({number * rows // SAMPLED_ROWS for number in range(SAMPLED_ROWS)})
    batch = ShardReader(run.shards, manifest, "train", verify=False).rows(numbers)
    lengths = [int(length) for row in batch.piece_tokens for length in row]
    context = sum(length**2 for length in lengths) / max(1, sum(lengths))
    trained = manifest.trained_tokens("train") / (rows * manifest.row_tokens)
    said = (
        f"{count_of(rows, 'row')} of {manifest.row_tokens:,} tokens, {trained:.0%} trained; a token's document has"
        f" {context:,.0f} tokens in the mean, by {count_of(len(numbers), 'row')}"
    )
    return Data(rows=rows, work=Work(context=context, trained=trained), said=said)


def wanted_of(run: RunConfig) -> Wanted:
    """Return what the YAML asks for; keys that it does not set are left to the plan."""
    train, given = run.train, run.train.model_fields_set
    stage, offload = template_of(run) if run.train.deepspeed is not None else (None, None)
    if train.zero_stage != "auto":
        stage = train.zero_stage
    return Wanted(
        global_batch_rows=train.global_batch_rows,
        row_tokens=run.data.row_tokens,
        weight_bytes=weight_bytes(run),
        micro_batch_rows=train.micro_batch_rows if "micro_batch_rows" in given else None,
        checkpointing=train.activation_checkpointing if "activation_checkpointing" in given else None,
        stage=stage,
        offload=offload,
        loss_chunk_tokens=train.loss_chunk_tokens,
        is_compiled=train.compile == "layers",
        hpz=train.hpz if "hpz" in given else None,
    )


def attended(run: RunConfig, work: Work) -> Work:
    """Return the work with attention as the YAML fixes it: under a dense mask all pairs of a row are computed."""
    is_dense = run.train.attention in DENSE
    return replace(work, context=2 * run.data.row_tokens) if is_dense else work  # twice: not only earlier tokens


def attention_line(run: RunConfig) -> Iterator[str]:
    """Yield a line about attention that costs more than it must."""
    if run.train.attention in DENSE:
        more = "" if run.train.attention == "sdpa" else "; its scores take memory that is not counted here"
        yield wrapped("attention", f"{run.train.attention}: of all pairs of tokens of a row, under a mask{more}")


def weight_bytes(run: RunConfig) -> int:
    return 2 if run.train.precision == "bf16" else 4


def template_of(run: RunConfig) -> tuple[int, Offload]:
    """Return the ZeRO stage and the offload of the run's DeepSpeed template; NVMe counts as the host's memory."""
    return ds_config.stored_as(ds_config.read_template(run.train.deepspeed))


def fixed_line(wanted: Wanted) -> Iterator[str]:
    """Yield a line about what the plan may not choose."""
    fixed = {
        "micro_batch_rows": wanted.micro_batch_rows,
        "activation_checkpointing": wanted.checkpointing,
        "ZeRO stage": wanted.stage,
    }
    named = [f"{key}: {value}" for key, value in fixed.items() if value is not None]
    if named:
        yield wrapped("fixed", f"by the YAML: {', '.join(named)}; without these keys the fastest that fits is shown")


def machine_lines(run: RunConfig, origin: ModelOrigin, plan: Plan, manifest: Manifest) -> Iterator[str]:
    """Yield what is known of the run's costs on this machine: its states, and on a GPU of the table all the rest."""
    from training.step.activation_checkpointing import checkpoint_activations  # these import torch
    from training.zero.stage_choice import choice_of, layout_of, local_memory, recorded

    checkpoint_activations(origin.trained_skeleton(run.train), run.train.activation_checkpointing)
    shape = shape_of_origin(run, origin)
    machine = local_memory(plan.world_size)
    choice = choice_of(run.train, plan, shape, machine, recorded(run.paths.plan))
    layout = layout_of(run.train, plan, choice, shape, machine)
    yield choice.as_text()
    yield state_line(shape, layout)
    if not gpu_count():
        yield "speed        not predicted without a GPU; for a cluster: shardline check RUN --nodes 1,2 --gpus h200:8"
        return
    from training.device import device_name  # imports torch

    kind = kind_of_device(device_name())
    if run.train.precision != "bf16":
        yield f"speed        not predicted: precision {run.train.precision}; the model knows bf16 alone"
        return
    if kind is None:
        yield f"speed        not predicted: the data sheet of {device_name()!r} is not in the table"
        return
    here = Cluster(kind=kind, nodes=1, gpus_per_node=plan.world_size, network_gbit=kind.network_gbit)
    wanted = Wanted(
        global_batch_rows=plan.global_batch_rows,
        row_tokens=plan.row_tokens,
        weight_bytes=layout.weight_bytes,
        micro_batch_rows=plan.micro_batch_rows,
        checkpointing=layout.checkpointing,
        stage=layout.stage,
        offload=layout.offload,
        buckets=layout.buckets,
        loss_chunk_tokens=layout.loss_chunk_tokens,
        is_compiled=layout.is_compiled,
        hpz=False,
    )
    yield from attention_line(run)
    found = predict(shape, attended(run, prepared_data(run, manifest).work), wanted, here)
    yield from table([found], plan.total_steps)
    if isinstance(found, Misfit):
        yield f"WARNING        predicted not to fit: {found.why}"
    yield from explained(shape, here, STORAGE)
