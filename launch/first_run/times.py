"""Estimate how long a run takes on this machine.

A step on CPU ranks costs processor time whatever it holds, more for each token (attention, normalization and Python in
small layers), and more for each operation of the matrix products. The three costs were fitted to runs with stories260k
(all weights: 2,048 tokens a step, 0.57 s of processor time in all ranks; LoRA: 1,024 tokens, 0.42 s) and a new model
of 1.8M parameters (4,096 tokens, 1.25 s). Other programs that use the machine make each rank wait for its turn.
"""

from __future__ import annotations

import math
import os
import time

from cluster.machine import cpu_count
from cluster.progress import duration
from cluster.wording import count_of
from launch.first_run.choices import CHECKS, Choices
from launch.first_run.facts import Machine

GPU_FLOPS = 1e14  # that a training run gets of one data centre GPU
STEP_S = 0.27  # of processor time
TOKEN_S = 1.5e-4  # of processor time
CPU_SHARE = 0.9  # of the speed of large matrix products
START_S = 14.0  # of processor time, for the imports of two ranks
FORWARD_SHARE = 1 / 3  # of the work of a step, to score as many held-out rows
ROUGHLY = 1.4  # a longer time is said too if it is so many times longer
LONG_S = 12 * 3600.0


def time_text(it: Choices, machine: Machine) -> str:
    """Return the estimated time on this machine."""
    if machine.gpus:
        seconds = training_flops(it) / (GPU_FLOPS * machine.gpus)
        return f"{about(seconds)} of training on {count_of(machine.gpus, 'large GPU')}; smaller ones take longer"
    alone = processor_seconds(it, cpu_flops()) / machine.ranks
    seconds = alone * crowding(machine.ranks, 0)
    said = f"{about(seconds)} of training on this machine without a GPU"
    if seconds > LONG_S:
        on_gpu = about(training_flops(it) / GPU_FLOPS)
        return f"WARNING: {said} ({on_gpu} on one large GPU); choose a smaller model, less data, or a GPU"
    now = alone * crowding(machine.ranks, os.getloadavg()[0])
    if now > ROUGHLY * seconds and about(now) != about(seconds):
        said += f"; {about(now)} if other programs use it as they do now"
    return said


def about(seconds: float) -> str:
    """Return a duration as precisely as an estimate is."""
    if seconds < 60:
        return "less than a minute"
    minutes = round(seconds / 60)
    return f"about {count_of(minutes, 'minute')}" if minutes < 60 else f"about {duration(seconds)}"


def processor_seconds(it: Choices, flops: float) -> float:
    """Estimate the processor time of a run in all ranks, for a processor of this speed."""
    tokens = it.batch.value * it.row_tokens.value
    step = STEP_S + TOKEN_S * tokens + training_flops(it) / it.steps / (CPU_SHARE * flops)
    held_out = CHECKS * it.rows * it.validation_fraction.value / max(1.0, it.batch.value * it.steps)
    return START_S + it.steps * step * (1 + FORWARD_SHARE * held_out)


def crowding(ranks: int, others: float) -> float:
    """Return how many times longer ranks take if so many other processes want to run on the same processors."""
    return max(1.0, (ranks + others) / cpu_count())


def training_flops(it: Choices) -> float:
    """Estimate the operations of the run: 6 a parameter and token, 4 with LoRA."""
    each = 4 if it.method == "lora" else 6
    return each * it.parameters * float(it.steps * it.batch.value * it.row_tokens.value)


def cpu_flops() -> float:
    """Measure matrix products in fp32 for a tenth of a second, by the processor time that they take."""
    import numpy as np

    size = 512
    left, right = np.ones((size, size), np.float32), np.ones((size, size), np.float32)
    left @ right
    best, end = math.inf, time.perf_counter() + 0.1
    while time.perf_counter() < end:
        began = time.process_time()
        left @ right
        best = min(best, time.process_time() - began)
    return 2.0 * size**3 / max(best, 1e-6)
