"""How much ZeRO sends and fetches at a time, in elements: fixed, or sized from the model."""

from __future__ import annotations

from dataclasses import dataclass

from training.costs.shapes import ModelShape

LARGEST = 500_000_000  # DeepSpeed's own default of a bucket
SMALLEST = 16_000_000  # 32 MB in bf16: smaller messages no longer fill a network (stas00/ml-engineering, network)
PERSISTENT = 100_000  # norms, biases and adapters of most models are smaller


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Elements of the bucket that gradients are reduced from and of what is fetched ahead under ZeRO-3.

    A parameter of at most `persistence` elements stays whole on every rank under ZeRO-3.
    """

    reduce: int = LARGEST
    prefetch: int = LARGEST
    persistence: int = PERSISTENT


def sized_buckets(shape: ModelShape) -> Buckets:
    """Return buckets for a model: a layer is reduced at once and fetched at once, and no vector is gathered.

    They are allocated in full, so one of DeepSpeed's default size costs a model of 1B or an adapter more than it gains.
    """
    layer = max(shape.largest_gather, SMALLEST)
    vector = max((p.size for p in shape.parameters if len(p.shape) == 1), default=0)
    return Buckets(
        reduce=min(LARGEST, layer, max(shape.trained, SMALLEST)),
        prefetch=min(LARGEST, layer),
        persistence=max(PERSISTENT, vector),
    )
