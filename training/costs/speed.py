"""The time of a step: products, the rest of the arithmetic, and communication.

Constants were fitted to the 20 rows of 7B to 70B and 2,048 tokens that LLM-Foundry publishes for H100 nodes, OVERLAP to
three rows of fms-fsdp on a network of 800 Gb/s, and then frozen. tests/training/costs/published.py has these rows and
those that were held out, with their sources; ERROR is what the test holds them to.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.costs.gpus import Cluster, GpuKind
from training.costs.memory import Layout
from training.costs.shapes import ModelShape

PRODUCTS = 0.84  # of the dense peak, in matrix products
OTHER_BYTES = {False: 725.0, True: 280.0}  # per layer, token and width, by whether layers are compiled
LOSS_BYTES = 14.0  # per token and vocabulary entry
HBM = 0.8  # of the data sheet's bandwidth
NVLINK = 0.8  # the same: 361 of 450 GB/s in an all-gather of 8 H200 (stas00/ml-engineering, network, 2026-08)
NETWORK = 0.9125  # the same: 365 of 400 GB/s between four nodes of 8 H200 with 8 x 400 Gb/s (there)
CONGESTION_RANKS = 300  # so many ranks halve the bandwidth between nodes
OVERLAP = 0.4  # of the shorter of arithmetic and communication is hidden behind the other
# Seconds of the host per layer and micro batch, below which no GPU is faster. Our own step on one H200 under ZeRO-3:
# 0.22 s for 16 layers, the host busy all the time (benchmarks/RESULTS.md, gpu_step); the other stages by the ratio of
# what the hooks cost on CPU ranks.
HOST_S = {1: 8e-3, 2: 8e-3, 3: 13e-3}
PCIE = 0.8  # of the data sheet's bandwidth; no measurement, as for HOST_MEMORY
HOST_MEMORY = 200e9  # bytes/s that the optimizers of all ranks of a node share when they are offloaded
UPDATE_BYTES = 28  # per trained parameter: reads and writes of fused Adam
MEAN_ERROR, HELD_OUT_ERROR = 0.05, 0.12


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a token is: `context` is how many tokens its document has, weighted by tokens, as attention sees them.

    `trained` is the share of tokens with a loss, through the head of which alone the others do not pass.
    """

    context: float
    trained: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations per token: in products, in attention, and in the output head."""

    products: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.products + self.attention + self.head


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of one step: received by a GPU over NVLink, and by a node from the other nodes."""

    within: float
    between: float


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step by what they are spent on; `hidden` is the communication behind arithmetic."""

    arithmetic: float
    communication: float
    hidden: float
    update: float

    @property
    def total(self) -> float:
        return self.arithmetic + self.communication - self.hidden + self.update


def flops_of(shape: ModelShape, work: Work) -> Flops:
    """Return the operations of forward and backward per token, without recomputation.

    A product with a weight costs 2 forward, 2 for the gradient of its input, and 2 for its own if it is trained.
    Attention is causal and within documents: 6 x layers x width x tokens of the document.
    """
    head = shape.head * (6 if shape.head_trained else 4)
    return Flops(
        products=4 * shape.used + 2 * shape.used_trained,
        attention=6.0 * shape.layers * shape.attention_width * work.context,
        head=head * work.trained,
    )


def bandwidth(cluster: Cluster) -> float:
    """Return the bytes/s at which a GPU takes part in a collective over all GPUs."""
    inside = NVLINK * cluster.kind.nvlink
    if cluster.nodes == 1:
        return inside
    outside = NETWORK * cluster.network_gbit * 1e9 / 8 / (1 + cluster.gpus / CONGESTION_RANKS)
    return min(inside, outside)


def moved(shape: ModelShape, layout: Layout, accumulation: int) -> float:
    """Return the bytes that a rank receives in a step if all others hold them: weights gathered, gradients reduced."""
    weights, gradients = layout.weight_bytes * shape.total, layout.weight_bytes * shape.trained
    if layout.stage == 3:
        return accumulation * (2 * weights + gradients)
    updated = layout.weight_bytes * shape.trained
    return updated + (accumulation * gradients if layout.stage == 2 else gradients)


def moved_within(shape: ModelShape, layout: Layout, accumulation: int) -> float:
    """Return how many of these bytes come from the node's own copy with hpZ: all weights but those gathered first."""
    if layout.hpz_ranks is None or layout.stage != 3:
        return 0.0
    return (2 * accumulation - 1) * layout.weight_bytes * float(shape.total)


def traffic_of(shape: ModelShape, layout: Layout, cluster: Cluster, accumulation: int) -> Traffic:
    """Return the bytes of one step over each kind of link."""
    whole = moved(shape, layout, accumulation)
    nodes, ranks = cluster.nodes, cluster.gpus
    between = (whole - moved_within(shape, layout, accumulation)) * (nodes - 1) / nodes
    return Traffic(within=whole * (ranks - 1) / ranks, between=between)


def communication_time(shape: ModelShape, layout: Layout, cluster: Cluster, accumulation: int) -> float:
    """Return the seconds that a GPU receives: over NVLink what its node holds, the rest with all GPUs."""
    own = moved_within(shape, layout, accumulation)
    rest = (moved(shape, layout, accumulation) - own) * (cluster.gpus - 1) / cluster.gpus
    own *= (cluster.gpus_per_node - 1) / cluster.gpus_per_node
    return rest / bandwidth(cluster) + own / (NVLINK * cluster.kind.nvlink)


def step_time(shape: ModelShape, work: Work, layout: Layout, cluster: Cluster, accumulation: int) -> StepTime:
    """Return the predicted time of an optimizer step of `accumulation` micro batches."""
    passed = arithmetic_time(shape, work, layout, cluster.kind)
    arithmetic = accumulation * max(passed, HOST_S[layout.stage] * shape.layers)
    communication = communication_time(shape, layout, cluster, accumulation)
    return StepTime(
        arithmetic=arithmetic,
        communication=communication,
        hidden=OVERLAP * min(arithmetic, communication),
        update=update_time(shape, layout, cluster, accumulation),
    )


def arithmetic_time(shape: ModelShape, work: Work, layout: Layout, kind: GpuKind) -> float:
    """Return the seconds of a GPU for forward and backward of one micro batch."""
    flops, again = flops_of(shape, work), layout.passes
    products = (flops.products * again + flops.head) / (PRODUCTS * kind.peak_flops)
    attention = flops.attention * again / kind.attention_flops
    light = OTHER_BYTES[layout.is_compiled] * shape.layers * shape.width * layout.light_passes
    rest = light + LOSS_BYTES * shape.vocab * work.trained
    return layout.tokens * (products + attention + rest / (HBM * kind.hbm))


def update_time(shape: ModelShape, layout: Layout, cluster: Cluster, accumulation: int) -> float:
    """Return the seconds of the optimizer: on the GPU, or on the host with what moves there and back.

    Offloaded weights are copied to the GPU for every pass.
    """
    mine = shape.trained / cluster.gpus
    if layout.offload == "none":
        return UPDATE_BYTES * mine / (HBM * cluster.kind.hbm)
    link = PCIE * cluster.kind.pcie
    copied = (accumulation * 4 + 2) * mine
    if layout.offload == "all":
        copied += 2 * accumulation * layout.weight_bytes * shape.total / cluster.gpus
    return copied / link + UPDATE_BYTES * mine / (HOST_MEMORY / cluster.gpus_per_node)
