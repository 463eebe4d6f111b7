"""The layouts of a run on a cluster: which fit, and which is predicted to be the fastest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cluster.wording import count_of
from training.config import ActivationCheckpointing
from training.costs.buckets import Buckets
from training.costs.gpus import Cluster
from training.costs.memory import Layout, Memory, Offload, memory_of, usable
from training.costs.saving import STORAGE, Saving, saving_of
from training.costs.shapes import ModelShape
from training.costs.speed import StepTime, Traffic, Work, flops_of, step_time, traffic_of

STAGES = (1, 2, 3)
CHECKPOINTING: tuple[ActivationCheckpointing, ...] = ("none", "selective", "full")  # from the fastest to the smallest
MICRO_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
OFFLOADS: dict[int, tuple[Offload, ...]] = {1: ("none",), 2: ("none", "optimizer"), 3: ("none", "optimizer", "all")}
AS_FAST = 1.01  # within so much of the fastest, the lowest stage without recomputation and offload is taken
OFFLOAD_GAIN = 1.25  # its time was not compared with published runs
HOST_SHARE = 0.9  # of a host's memory that offloaded states and copies for checkpoints may take
MOST_NODES = 4096  # looked at for a cluster that would do


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a run's YAML says. None where the plan may choose."""

    global_batch_rows: int
    row_tokens: int
    weight_bytes: int = 2
    micro_batch_rows: int | None = None
    checkpointing: ActivationCheckpointing | None = None
    stage: int | None = None
    offload: Offload | None = None
    buckets: Buckets | None = None
    loss_chunk_tokens: int | None = None
    is_compiled: bool = False
    hpz: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A layout on a cluster with its predicted costs. Rates are of all tokens of the rows, padding included."""

    cluster: Cluster
    layout: Layout
    accumulation: int
    memory: Memory
    time: StepTime
    traffic: Traffic
    saving: Saving
    tokens_per_s: float
    mfu: float
    hfu: float

    @property
    def tokens_per_s_per_gpu(self) -> float:
        return self.tokens_per_s / self.cluster.gpus

    def hours(self, steps: int) -> float:
        """Return the hours of so many steps with the time that saves and failures are expected to take."""
        return steps * self.time.total / self.saving.goodput() / 3600


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A cluster that a run does not fit, why, and what would help."""

    cluster: Cluster
    why: str


def predict(
    shape: ModelShape, work: Work, wanted: Wanted, cluster: Cluster, storage: float = STORAGE
) -> Prediction | Misfit:
    """Return the layout that fits and is predicted to be the fastest, or why none does."""
    if cluster.gpus > wanted.global_batch_rows:
        rows = wanted.global_batch_rows
        return Misfit(
            cluster=cluster,
            why=f"a batch of {count_of(rows, 'row')} gives {count_of(cluster.gpus - rows, 'GPU')} nothing to do;"
            f" set train.global_batch_rows to {cluster.gpus:,} or more",
        )
    fitting = [
        priced(shape, work, wanted, cluster, layout, storage)
        for layout in layouts(wanted, cluster)
        if does_fit(shape, layout, cluster)
    ]
    if not fitting:
        return Misfit(cluster=cluster, why=misfit_text(shape, wanted, cluster))
    return fastest(fitting)


def fastest(fitting: Sequence[Prediction]) -> Prediction:
    """Return the fastest, or the plainest of those that are as fast. Offload must be worth it by OFFLOAD_GAIN."""
    plain = [one for one in fitting if one.layout.offload == "none"]
    best = min(one.time.total for one in fitting)
    if plain and min(one.time.total for one in plain) < OFFLOAD_GAIN * best:
        fitting = plain
    border = min(one.time.total for one in fitting) * AS_FAST
    return min((one for one in fitting if one.time.total <= border), key=plainness)


def plainness(one: Prediction) -> tuple[object, ...]:
    layout = one.layout
    is_odd = layout.offload != "none", layout.hpz_ranks is not None
    return (*is_odd, layout.stage, CHECKPOINTING.index(layout.checkpointing), one.time.total)


def layouts(wanted: Wanted, cluster: Cluster) -> Iterator[Layout]:
    """Yield every layout that the YAML leaves open. Micro batches divide the batch where some do."""
    kinds = CHECKPOINTING if wanted.checkpointing is None else (wanted.checkpointing,)
    for stage, offload, hpz_ranks in placements(wanted, cluster):
        for checkpointing, rows in itertools.product(kinds, micro_batches(wanted, cluster)):
            yield Layout(
                ranks=cluster.gpus,
                stage=stage,
                micro_batch_rows=rows,
                row_tokens=wanted.row_tokens,
                checkpointing=checkpointing,
                offload=offload,
                weight_bytes=wanted.weight_bytes,
                buckets=wanted.buckets,
                loss_chunk_tokens=wanted.loss_chunk_tokens,
                is_compiled=wanted.is_compiled,
                hpz_ranks=hpz_ranks,
            )


def placements(wanted: Wanted, cluster: Cluster) -> Iterator[tuple[int, Offload, int | None]]:
    """Yield each stage with what is offloaded, and over how many ranks hpZ keeps a copy, if it does."""
    for stage in STAGES if wanted.stage is None else (wanted.stage,):
        for offload in OFFLOADS[stage] if wanted.offload is None else (wanted.offload,):
            can = stage == 3 and offload != "all" and cluster.nodes > 1
            if not (can and wanted.hpz):
                yield stage, offload, None
            if can and wanted.hpz is not False:
                yield stage, offload, cluster.gpus_per_node


def micro_batches(wanted: Wanted, cluster: Cluster) -> list[int]:
    if wanted.micro_batch_rows is not None:
        return [wanted.micro_batch_rows]
    most = math.ceil(wanted.global_batch_rows / cluster.gpus)
    possible = [rows for rows in MICRO_BATCHES if rows <= most]
    return [rows for rows in possible if wanted.global_batch_rows % (rows * cluster.gpus) == 0] or possible


def does_fit(shape: ModelShape, layout: Layout, cluster: Cluster) -> bool:
    """Return whether a rank's memory fits its GPU, and what all ranks of a node offload its host."""
    memory = memory_of(shape, layout)
    fits_host = memory.host * cluster.gpus_per_node <= HOST_SHARE * cluster.kind.host_bytes
    return fits_host and memory.gpu <= usable(cluster.kind.memory_bytes)


def priced(
    shape: ModelShape, work: Work, wanted: Wanted, cluster: Cluster, layout: Layout, storage: float = STORAGE
) -> Prediction:
    """Return a layout with its predicted costs."""
    accumulation = math.ceil(wanted.global_batch_rows / (layout.micro_batch_rows * cluster.gpus))
    time = step_time(shape, work, layout, cluster, accumulation)
    tokens_per_s = wanted.global_batch_rows * wanted.row_tokens / time.total
    flops = flops_of(shape, work)
    again = (layout.passes - 1) * (flops.products + flops.attention)
    possible = cluster.gpus * cluster.kind.peak_flops
    memory = memory_of(shape, layout)
    free = HOST_SHARE * cluster.kind.host_bytes - memory.host * cluster.gpus_per_node
    return Prediction(
        cluster=cluster,
        layout=layout,
        accumulation=accumulation,
        memory=memory,
        time=time,
        traffic=traffic_of(shape, layout, cluster, accumulation),
        saving=saving_of(shape, cluster, storage, free_host_bytes=free),
        tokens_per_s=tokens_per_s,
        mfu=flops.total * tokens_per_s / possible,
        hfu=(flops.total + again) * tokens_per_s / possible,
    )


def misfit_text(shape: ModelShape, wanted: Wanted, cluster: Cluster) -> str:
    """Return by how much the least demanding layout misses, and what would fit."""
    least = min((memory_of(shape, layout) for layout in layouts(wanted, cluster)), key=lambda memory: memory.gpu)
    has = cluster.kind.memory_bytes
    if least.gpu > usable(has):
        short = f"needs {least.gpu / 1e9:,.0f} GB a GPU, of {has / 1e9:.0f} GB {usable(has) / 1e9:.0f} can be filled"
    else:
        short = f"offloaded states do not fit the {cluster.kind.host_bytes / 1e12:g} TB of a node's host"
    return f"{short}; {what_would_fit(shape, wanted, cluster)}"


def what_would_fit(shape: ModelShape, wanted: Wanted, cluster: Cluster) -> str:
    """Return which key of the YAML is in the way, or the number of nodes that would do, in doublings."""
    for key, freed in {
        "train.activation_checkpointing": replace(wanted, checkpointing=None),
        "train.micro_batch_rows": replace(wanted, micro_batch_rows=None),
        "train.deepspeed": replace(wanted, stage=None, offload=None),
        "train.micro_batch_rows, train.activation_checkpointing and train.deepspeed": replace(
            wanted, checkpointing=None, micro_batch_rows=None, stage=None, offload=None
        ),
    }.items():
        if any(does_fit(shape, one, cluster) for one in layouts(freed, cluster)):
            return f"fits without {key} in the YAML"
    nodes = cluster.nodes * 2
    while nodes <= MOST_NODES:
        larger = replace(cluster, nodes=nodes)
        rows = max(wanted.global_batch_rows, larger.gpus)
        if any(does_fit(shape, one, larger) for one in layouts(replace(wanted, global_batch_rows=rows), larger)):
            return f"fits {nodes} nodes"
        nodes *= 2
    return "no number of nodes helps: shorten data.row_tokens, use train.lora or GPUs with more memory"
