"""The memory of one rank, part by part.

States and buffers are what DeepSpeed allocates with the settings of training/zero/ds_config.py, in which micro batches
are summed in fp32; tests/training/costs measures them on real ranks. Activations are what PyTorch keeps for backward in
a Llama layer of transformers without compilation.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from training.config import ActivationCheckpointing
from training.costs.buckets import Buckets, sized_buckets
from training.costs.shapes import ModelShape
from training.optimizer_state import ITEM_BYTES, STATE_BYTES_PER_PARAMETER

Offload = Literal["none", "optimizer", "all"]
MAX_LIVE = 1_000_000_000  # elements that ZeRO-3 keeps gathered, in ds_configs/
CHUNK_LOGITS = 1 << 22  # of training/step/loss.py, which imports torch
HEADROOM = 0.10  # of a GPU's memory kept free: fragments of the allocator, and the stated error of a prediction
CONTEXT = 2.0e9  # of CUDA and NCCL, outside of torch's allocator: 1 to 2.5 GB on Hopper


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a model lies on its ranks, and what a rank takes at a time.

    `partly_recomputed` is the share of the forward pass that is done again, for published runs that choose it.
    """

    ranks: int
    stage: int
    micro_batch_rows: int
    row_tokens: int
    checkpointing: ActivationCheckpointing = "none"
    offload: Offload = "none"
    buckets: Buckets | None = None  # None: sized from the model, as on GPUs
    loss_chunk_tokens: int | None = None
    weight_bytes: int = 2
    is_compiled: bool = False
    hpz_ranks: int | None = None  # over which hpZ partitions a second copy of the weights; None: no copy
    partly_recomputed: float = 0.0

    @property
    def tokens(self) -> int:
        return self.micro_batch_rows * self.row_tokens

    @property
    def passes(self) -> float:
        """Return what products and attention cost with recomputation, in units of forward and backward alone."""
        return 1.0 + (1.0 if self.checkpointing == "full" else self.partly_recomputed) / 3

    @property
    def light_passes(self) -> float:
        """Return the same of all other operations, which selective checkpointing computes again too."""
        return self.passes if self.checkpointing == "none" else 4 / 3


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank on its GPU by part, and on its host. `moments` are Adam's two."""

    weights: float
    gradients: float
    master: float
    moments: float
    gathered: float
    buckets: float
    activations: float
    head: float
    host: float = 0.0

    @property
    def state(self) -> float:
        return self.weights + self.gradients + self.master + self.moments

    @property
    def gpu(self) -> float:
        return sum(float(getattr(self, part.name)) for part in fields(self) if part.name != "host")


def memory_of(shape: ModelShape, layout: Layout) -> Memory:
    """Return the memory of one rank at its peak, which is in backward."""
    state = state_of(shape, layout)
    optimizer_out, weights_out = layout.offload != "none", layout.offload == "all"
    host = sum(state[part] for part in ("gradients", "master", "moments")) if optimizer_out else 0.0
    host += state["weights"] if weights_out else 0.0
    on_gpu = {part: 0.0 if optimizer_out else size for part, size in state.items() if part != "weights"}
    return Memory(
        weights=0.0 if weights_out else state["weights"],
        gathered=gathered(shape, layout),
        buckets=buckets(shape, layout),
        activations=activations(shape, layout),
        head=head_and_loss(shape, layout),
        host=host,
        **on_gpu,
    )


def state_of(shape: ModelShape, layout: Layout) -> dict[str, float]:
    """Return the bytes of weights, gradients, master weights and moments of one rank, wherever they lie.

    Stage 1 sums the micro batches' gradients in fp32 on every rank, in whole, beside those in the weights' precision;
    stages 2 and 3 keep a rank's part of the sum.
    """
    share = 1 / layout.ranks
    whole = layout.weight_bytes * shape.total
    summed = ITEM_BYTES * shape.trained
    gradients = {1: summed + layout.weight_bytes * shape.trained, 2: summed * share, 3: summed * share}
    if layout.weight_bytes == ITEM_BYTES:
        gradients[1] = summed
    copy = whole / layout.hpz_ranks if layout.hpz_ranks else 0.0
    return {
        "weights": whole * share + copy if layout.stage == 3 else whole,
        "gradients": gradients[layout.stage],
        "master": ITEM_BYTES * shape.trained * share,
        "moments": (STATE_BYTES_PER_PARAMETER - ITEM_BYTES) * shape.trained * share,
    }


def gathered(shape: ModelShape, layout: Layout) -> float:
    """Return the bytes of whole weights that ZeRO-3 keeps: a layer and what is fetched ahead, or what it may keep."""
    if layout.stage != 3:
        return 0.0
    ahead = shape.largest_gather + buckets_of(shape, layout).prefetch
    return float(layout.weight_bytes * min(shape.total, max(MAX_LIVE, ahead)))


def buckets(shape: ModelShape, layout: Layout) -> float:
    """Return the bytes of the buckets that gradients pass through: allocated in full, and as much to send.

    In stage 2 two are filled in turn; a layer larger than the bucket is reduced on its own.
    """
    bucket = buckets_of(shape, layout).reduce
    sent = min(max(bucket, shape.largest_trained), shape.trained)
    filled = {1: 0, 2: 2 * bucket, 3: bucket}[layout.stage]
    return float(layout.weight_bytes * (filled + sent))


def buckets_of(shape: ModelShape, layout: Layout) -> Buckets:
    return layout.buckets or sized_buckets(shape)


def activations(shape: ModelShape, layout: Layout) -> float:
    """Return the bytes kept for backward, and in recomputation one layer's own beside what is kept of all."""
    layer = layer_bytes_per_token(shape, layout.weight_bytes)
    if layout.checkpointing == "none":
        return layout.tokens * shape.layers * layer
    if layout.checkpointing == "full":
        return layout.tokens * (shape.layers * layout.weight_bytes * shape.width + layer)
    kept = selective_bytes_per_token(shape, layout.weight_bytes)
    return layout.tokens * (shape.layers * kept + max(0.0, layer - kept))


def selective_bytes_per_token(shape: ModelShape, item: int = 2) -> float:
    """Return the bytes that selective checkpointing keeps of a layer for a token.

    The layer's input; the outputs of its products, which are query, key, value, the output of attention's projection,
    gate, up and down; and attention's output, with fp32 sums that are too small to count.
    """
    of_width = 3 * shape.width + 2 * shape.attention_width
    return item * (of_width + 2 * shape.key_width + 2 * shape.feed_forward)


def layer_bytes_per_token(shape: ModelShape, item: int = 2) -> float:
    """Return the bytes that a layer keeps for a token.

    Each of two norms keeps its input in fp32 and its output before the scale; each product its input; attention its
    query, output, key and value, repeated for every query head; the gate its two factors, its product and what it was
    made of.
    """
    norms = 2 * (4 + 2 * item) * shape.width
    attention = item * (3 * shape.attention_width + 2 * shape.key_width)
    feed_forward = 4 * item * shape.feed_forward
    return norms + attention + feed_forward


def head_and_loss(shape: ModelShape, layout: Layout) -> float:
    """Return the bytes of the output head and the loss, which is computed in chunks.

    The head's gradient in fp32 and in the weights' precision, three copies of a chunk's logits in fp32, the hidden
    states and their gradient.
    """
    gradient = (ITEM_BYTES + layout.weight_bytes) * shape.head if shape.head_trained else 0
    wanted = layout.loss_chunk_tokens
    chunk = 3 * 4 * (max(CHUNK_LOGITS, shape.head // 2) if wanted is None else wanted * shape.vocab)
    return (
        gradient
        + min(chunk, 12.0 * layout.tokens * shape.vocab)
        + 2 * layout.weight_bytes * layout.tokens * (shape.width)
    )


def usable(memory_bytes: float) -> float:
    """Return how much of a GPU's memory a plan may fill."""
    return memory_bytes * (1 - HEADROOM) - CONTEXT
