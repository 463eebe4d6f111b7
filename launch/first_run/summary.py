"""Say what was found, what was chosen and how long it may take."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from cluster.progress import duration
from cluster.wording import count_of
from launch.first_run.choices import Choices, training_flops
from launch.first_run.facts import BYTES_PER_TOKEN, DataFacts, Machine, ModelFacts

GPU_FLOPS = 1e14  # that a training run gets of one data centre GPU
CPU_SHARE = 0.25  # of the speed of large matrix products that a training run gets
OVERHEAD_S = 0.12  # of a step on CPU ranks, however small the model
LONG_S = 12 * 3600.0


def summary(data: str, facts: DataFacts, model: ModelFacts | None, it: Choices, machine: Machine) -> Iterator[str]:
    """Yield lines for the person who typed `shardline init`."""
    yield f"data           {data}: {facts.kind}, {data_size(facts)}"
    if facts.sizes is not None and facts.kind != "text":
        long, longest = facts.sizes.percentile(0.95), int(facts.sizes.lengths.max())
        yield f"               95% have up to {long:,} tokens, the longest of the sample {longest:,}"
    yield from model_summary(facts, model, it)
    yield f"rows           {it.row_tokens.value:g} tokens: {it.row_tokens.reason}"
    yield f"held out       {it.validation_fraction.value:.0%}: {it.validation_fraction.reason}"
    yield (
        f"training       {count_of(int(it.epochs.value), 'epoch')} of about {it.rows:,} rows,"
        f" {it.batch.value:g} a step: {it.epochs.reason}"
    )
    yield f"learning rate  {it.rate.value:g} {it.rate.reason}"
    yield f"time           {time_text(it, machine)}"


def data_size(facts: DataFacts) -> str:
    if facts.sizes is None:
        if not facts.bytes:
            return f"not measured: {facts.unmeasured}"
        return (
            f"about {facts.tokens:,.0f} tokens at {BYTES_PER_TOKEN:g} bytes a token (not measured: {facts.unmeasured})"
        )
    by = " (with a tokenizer trained on the sample)" if facts.by_own_tokenizer else ""
    return f"about {count_of(max(1, round(facts.sizes.documents)), 'document')} and {facts.tokens:,.0f} tokens{by}"


def model_summary(facts: DataFacts, model: ModelFacts | None, it: Choices) -> Iterator[str]:
    """Yield lines on the model."""
    if model is None:
        yield f"model          new: about {it.parameters:,} random parameters, a size for this much text"
        return
    if model.folder is None:
        yield f"model          {model.name}: not on this machine; `shardline check` fetches it"
        return
    size = f"{model.parameters:,} parameters" if model.parameters else "of unknown size"
    positions = f", {model.positions:,} positions" if model.positions else ""
    yield f"model          {model.name}: {size}{positions}; {'LoRA' if it.method == 'lora' else 'all weights'} trained"
    if facts.kind == "conversations":
        yield f"template       {model.template or 'its own'}: {model.template_reason}"


def time_text(it: Choices, machine: Machine) -> str:
    """Return the estimated time on this machine."""
    if machine.gpus:
        seconds = training_flops(it) / (GPU_FLOPS * machine.gpus)
        return f"about {duration(seconds)} of training on {count_of(machine.gpus, 'GPU')}, longer on small ones"
    seconds = it.steps * OVERHEAD_S + training_flops(it) / (CPU_SHARE * cpu_flops())
    said = f"about {duration(seconds)} of training on this machine without a GPU"
    if seconds > LONG_S:
        on_gpu = duration(training_flops(it) / GPU_FLOPS)
        return f"WARNING: {said} (about {on_gpu} on one large GPU); choose a smaller model, less data, or a GPU"
    return said


def cpu_flops() -> float:
    """Measure matrix products in fp32 for a tenth of a second."""
    import numpy as np

    size = 512
    left, right = np.ones((size, size), np.float32), np.ones((size, size), np.float32)
    left @ right
    best, end = math.inf, time.perf_counter() + 0.1
    while time.perf_counter() < end:
        began = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - began)  # other processes slow down the rest
    return 2.0 * size**3 / best
