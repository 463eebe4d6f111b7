"""Predictions as text: a table of layouts side by side, the memory by part, and what the figures are worth."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from cluster.wording import count_of
from training.costs.gpus import Cluster
from training.costs.layouts import Misfit, Prediction
from training.costs.memory import HEADROOM, Layout, state_of
from training.costs.shapes import LISTED, ModelShape
from training.costs.speed import HELD_OUT_ERROR, MEAN_ERROR

CHECKPOINTING = {"none": "-", "selective": "sel", "full": "full"}
OFFLOAD = {"none": "-", "optimizer": "opt", "all": "all"}
LAYOUTS = (
    ("nodes", 5), ("GPUs", 5), ("ZeRO", 4), ("rows", 4), ("AC", 4), ("offl", 4), ("GB/GPU", 7), ("step s", 6),
    ("tok/s/GPU", 9), ("MFU", 5), ("hours", 6), ("GPU-h", 8), ("save s", 6), ("every", 5), ("goodput", 7),
)  # fmt: skip
PARTS = (
    ("nodes", 5), ("weights", 7), ("grads", 6), ("master", 6), ("moments", 7), ("gather", 6), ("bucket", 6),
    ("activ.", 6), ("head", 5), ("host", 6), ("NVLink", 6), ("network", 7), ("tok/s", 9), ("HFU", 5),
)  # fmt: skip
WIDTH, INDENT = 100, 15


def table(found: Sequence[Prediction | Misfit], steps: int | None) -> Iterator[str]:
    """Yield the lines of both tables; `steps` is None where the length of the run is not known."""
    yield row_of([name for name, _ in LAYOUTS], LAYOUTS)
    for one in found:
        yield misfit_row(one) if isinstance(one, Misfit) else row_of(cells(one, steps), LAYOUTS)
    fitting = [one for one in found if isinstance(one, Prediction)]
    if fitting:
        yield ""
        yield "GB on a GPU by part and on a node's host; GB a step over a GPU's NVLink and a node's network"
        yield row_of([name for name, _ in PARTS], PARTS)
        for one in fitting:
            yield row_of(part_cells(one), PARTS)
        yield ""
        yield checkpoint_line(fitting)


def row_of(values: Sequence[str], columns: Sequence[tuple[str, int]]) -> str:
    return " ".join(value.rjust(width) for value, (_, width) in zip(values, columns, strict=True))


def misfit_row(one: Misfit) -> str:
    return textwrap.fill(
        f"{one.cluster.nodes:>5} {one.cluster.gpus:>5}    - {one.why}", WIDTH, subsequent_indent=" " * INDENT
    )


def cells(one: Prediction, steps: int | None) -> list[str]:
    layout, saving = one.layout, one.saving
    hours = one.hours(steps) if steps is not None else None
    return [
        f"{one.cluster.nodes}",
        f"{one.cluster.gpus}",
        f"{layout.stage}hpZ" if layout.hpz_ranks else f"{layout.stage}",
        f"{layout.micro_batch_rows}",
        CHECKPOINTING[layout.checkpointing],
        OFFLOAD[layout.offload],
        f"{one.memory.gpu / 1e9:.0f}/{one.cluster.kind.memory_bytes / 1e9:.0f}",
        digits(one.time.total),
        f"{one.tokens_per_s_per_gpu:,.0f}",
        f"{one.mfu:.1%}",
        "?" if hours is None else digits(hours),
        "?" if hours is None else digits(hours * one.cluster.gpus),
        digits(saving.stall_s),
        span(saving.best_interval_s),
        f"{saving.goodput():.2%}",
    ]


def part_cells(one: Prediction) -> list[str]:
    memory = one.memory
    parts = (memory.weights, memory.gradients, memory.master, memory.moments, memory.gathered, memory.buckets)
    return [
        f"{one.cluster.nodes}",
        *(digits(size / 1e9) for size in (*parts, memory.activations, memory.head)),
        digits(memory.host * one.cluster.gpus_per_node / 1e9) if memory.host else "-",
        digits(one.traffic.within / 1e9),
        digits(one.traffic.between / 1e9) if one.cluster.nodes > 1 else "-",
        digits(one.tokens_per_s),
        f"{one.hfu:.1%}",
    ]


def digits(value: float) -> str:
    """Return a number with three digits that matter; thousands in groups, from 100,000 on alone."""
    if value >= 99_999.5:
        return f"{value / 1000:,.0f}k"
    if 0 < value < 0.1:
        return f"{value:.3f}"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def span(seconds: float) -> str:
    """Return a length of time in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def checkpoint_line(found: Sequence[Prediction]) -> str:
    """Return a line about the size of a checkpoint and how long it takes until its files are safe."""
    first, last = found[0], found[-1]
    spans = f"in {span(first.saving.write_s)} from {count_of(first.cluster.nodes, 'node')}"
    if len(found) > 1:
        spans += f", in {span(last.saving.write_s)} from {last.cluster.nodes}"
    return f"checkpoint     {digits(first.saving.checkpoint_bytes / 1e9)} GB, written in the background {spans}"


def wrapped(name: str, text: str) -> str:
    """Return a name and its text in lines of WIDTH."""
    return textwrap.fill(text, WIDTH, initial_indent=name.ljust(INDENT), subsequent_indent=" " * INDENT)


def explained(shape: ModelShape, cluster: Cluster, storage: float) -> Iterator[str]:
    """Yield what the figures are: predicted, with which error, from which assumptions."""
    kind = cluster.kind
    unknown = "" if kind.is_compared else f" No published run on {kind.name} was compared."
    if shape.used_of_experts < 1:
        unknown += " Nor was a mixture of experts, whose experts transformers computes more slowly than a dense layer."
    elif shape.model_type not in LISTED:
        unknown += f" Nor was a model of type {shape.model_type}: it is taken for a Llama of the same widths."
    yield wrapped(
        "predicted",
        f"Not measured. Published step times on 1 to 512 H100, H200 and A100 are predicted within {MEAN_ERROR:.0%} in"
        f" the mean where the constants were fitted, and within {HELD_OUT_ERROR:.0%} each where held out; see"
        f" docs/scale.md for what is not covered.{unknown}",
    )
    yield wrapped(
        "assumed",
        f"{kind.name} of {kind.memory_bytes / 1e9:.0f} GB, of which {HEADROOM:.0%} and 2 GB are kept free, at"
        f" {kind.peak_flops / 1e12:g} TFLOP/s; {cluster.network_gbit:,g} Gb/s of network and {storage / 1e9:g} GB/s of"
        " storage per node; one failure in 11,135 s on 16,384 GPUs, as Llama 3 had.",
    )
    yield wrapped(
        "columns",
        "3hpZ: stage 3 with train.hpz. rows: of a micro batch. tok/s: of all tokens of the rows, padding too. AC:"
        " activation checkpointing, sel or full. offl: states offloaded to the host, where nothing else fits or it is"
        " 1.25 times as fast. Times of hpZ, sel and offl were not compared with published runs. save s: training waits."
        " every: best interval of saves (Young, Daly). goodput: share of the time that is not lost to saves and"
        " failures; hours include the rest.",
    )


def state_line(shape: ModelShape, layout: Layout) -> str:
    """Return a line about what a rank keeps between steps and gathers in one: exact, without activations."""
    state = state_of(shape, layout)
    total = sum(state.values())
    unit, size = ("GB", 1e9) if total >= 1e9 else ("MB", 1e6)
    parts = ", ".join(f"{name} {digits(part / size)}" for name, part in state.items())
    where = {"none": "", "optimizer": "; all but the weights on the host", "all": "; on the host"}[layout.offload]
    kept = f"{digits(total / size)} {unit} of states a rank under ZeRO-{layout.stage}: {parts}{where}"
    return f"memory       {kept}; activations come on top"
