"""The curves of a run: what is drawn, over which axis, and what the captions say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from training.reporting.page.charts import Chart, Mark, Series
from training.reporting.page.hardware import Compute
from training.reporting.run_state import RunState
from training.reporting.status import NOISE, slowest_of, slowest_text

SMOOTHING_SHARE = 1 / 60  # of the run's steps: the time constant of the bold loss curve
MEASURED_MFU = "Operations on tokens that are no padding, attention within documents, of the GPUs' dense bf16 peak."
Evaluation = dict[str, Any] | None
Lines = Sequence[dict[str, Any]]


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the bias-corrected exponential moving average at each step, ignoring values that are not finite."""
    keep = 1 - 1 / max(3.0, len(values) * SMOOTHING_SHARE)
    total = weight = 0.0
    means = []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight if weight else math.nan)
    return means


def plots(state: RunState, evaluation: Evaluation, compute: Compute) -> list[Chart]:
    """Return the charts of a run that has steps, the loss first."""
    lines, marks = state.lines, interruptions(state)
    rate = by_step(lines, "learning_rate")
    found = [
        loss_chart(state, evaluation, marks),
        Chart(
            key="rate",
            title="Learning rate",
            x_name="step",
            y_name="no unit",
            series=[rate],
            marks=marks,
            caption="As the schedule gave it.",
            from_zero=True,
        ),
        Chart(
            key="norm",
            title="Gradient norm",
            x_name="step",
            y_name="before clipping, no unit",
            marks=marks,
            series=[by_step(lines, "gradient_norm")],
            caption="A spike is an odd batch; a steady rise is a learning rate that is too high.",
        ),
        speed_chart([by_step(lines, "tokens_per_s", style="bold")], marks=marks),
    ]
    found += [*mfu_chart(lines, compute, marks), *memory_chart(state, marks), wait_chart(lines, marks)]
    return [*found, *pace_chart(state, marks)]


def interruptions(state: RunState) -> list[Mark]:
    """Return a line for each restart that resumed from a checkpoint, and for each rollback."""
    restarts = [a.start["step"] for a in state.attempts[1:] if a.start["step"] > 0]
    rollbacks = [event["failed_step"] for event in state.events if event["event"] == "rollback"]
    return [
        *(Mark(name="restart", kind="restart", x=step) for step in sorted(set(restarts))),
        *(Mark(name="rollback", kind="rollback", x=step) for step in sorted(set(rollbacks))),
    ]


def by_step(lines: Lines, key: str, **options: Any) -> Series:
    """Return one of the metrics as a curve; steps without it are left out."""
    having = [line for line in lines if key in line]
    name = key.replace("_per_s", " per second").replace("_gb", "").replace("_", " ")
    return Series(name=name, x=[line["step"] for line in having], y=[line[key] for line in having], **options)


def loss_chart(state: RunState, evaluation: Evaluation, marks: Sequence[Mark]) -> Chart:
    """Return the loss of each step, its running mean, and the held-out loss during the run and after it."""
    each = by_step(state.lines, "loss", style="thin")
    series = [each, Series(name="running mean", x=each.x, y=smoothed(each.y))]
    held_out = sorted(state.validation.items())
    if held_out:
        steps, losses = [step for step, _ in held_out], [loss for _, loss in held_out]
        series += [Series(name="held-out", x=steps, y=losses, style=style, colour=2) for style in ("bold", "dots")]
    lacking = sum(not math.isfinite(loss) for loss in each.y)
    notes = [
        "Mean over trained tokens; thin: each step.",
        f"{lacking:,} {'step has' if lacking == 1 else 'steps have'} no loss that is a number." if lacking else "",
    ]
    scored = evaluation["models"] if evaluation else {}
    levels = [
        Mark(name=f"{name} model, held-out", kind="level", y=scored[name]["loss"])
        for name in ("base", "tuned")
        if name in scored and math.isfinite(scored[name]["loss"])
    ]
    if levels:
        told = ", ".join(f"{name} {scored[name]['loss']:.3f}" for name in ("base", "tuned") if name in scored)
        notes.append(f"Dotted: the evaluation on held-out rows: {told}.")
    return Chart(
        key="loss",
        title="Loss",
        x_name="step",
        y_name="nats per token",
        series=series,
        is_wide=True,
        marks=[*marks, *levels],
        caption=" ".join(filter(None, notes)),
    )


def speed_chart(series: Sequence[Series], *, marks: Sequence[Mark] = (), is_wide: bool = False) -> Chart:
    """Return the tokens per second of one run or of several."""
    return Chart(
        key="speed",
        title="Speed",
        x_name="step",
        y_name="tokens per second",
        from_zero=True,
        series=series,
        marks=marks,
        is_wide=is_wide,
        caption="All ranks together, with masked tokens and padding.",
    )


def mfu_chart(lines: Lines, compute: Compute, marks: Sequence[Mark]) -> list[Chart]:
    """Return the model FLOPs utilization as it was measured; of an older run, as far as the peak tells it."""
    measured = by_step(lines, "mfu")
    if not measured.x and compute.peak_flops is None:
        return []
    if measured.x or compute.peak_flops is None:
        used, caption = replace(measured, name="MFU"), MEASURED_MFU
    else:
        speed, share = by_step(lines, "tokens_per_s"), compute.flops_per_token / compute.peak_flops
        used, caption = Series(name="MFU", x=speed.x, y=[value * share for value in speed.y]), compute.explained
    return [
        Chart(
            key="mfu",
            title="MFU",
            x_name="step",
            y_name="share of peak FLOPs",
            series=[used],
            marks=marks,
            from_zero=True,
            is_share=True,
            caption=caption,
        )
    ]


def pace_chart(state: RunState, marks: Sequence[Mark]) -> list[Chart]:
    """Return by how much the slowest rank of each step was slower, where several ranks were measured."""
    excess = by_step(state.lines, "slowest_by")
    if not excess.x:
        return []
    return [
        Chart(
            key="pace",
            title="Slowest rank",
            x_name="step",
            y_name="time beyond the median rank's",
            series=[replace(excess, name="slowest rank")],
            marks=marks,
            from_zero=True,
            is_share=True,
            caption=f"{pace_text(state)}. The time of decoder layers, in which no rank waits for another.",
        )
    ]


def pace_text(state: RunState) -> str:
    """Return which rank is the slowest, or why none is named."""
    if state.paced is None:
        return "Too few steps were measured on the ranks of the newest attempt to name one"
    told = slowest_text(state)
    if told:
        return f"{told[:1].upper()}{told[1:]}"
    _, is_mostly, _ = slowest_of(state.paced.measured)
    if is_mostly:
        return f"One rank is the slowest in nearly all steps, but by less than {NOISE:.0%} in their median"
    return "No rank is the slowest in nearly all steps of the attempt"


def memory_chart(state: RunState, marks: Sequence[Mark]) -> list[Chart]:
    memory = by_step(state.lines, "memory_gb")
    if not memory.x:
        return []
    return [
        Chart(
            key="memory",
            title="Memory",
            x_name="step",
            y_name="GB, largest so far",
            series=[memory],
            marks=marks,
            from_zero=True,
            caption="Rank 0: tensors on its GPU, or its whole process on a CPU. Each start begins again.",
        )
    ]


def wait_chart(lines: Lines, marks: Sequence[Mark]) -> Chart:
    waits = [line["data_wait_s"] / line["step_s"] if line["step_s"] else 0.0 for line in lines]
    waited, total = (math.fsum(line[key] for line in lines) for key in ("data_wait_s", "step_s"))
    return Chart(
        key="wait",
        title="Wait for data",
        x_name="step",
        y_name="share of the step",
        from_zero=True,
        is_share=True,
        series=[Series(name="waiting", x=[line["step"] for line in lines], y=waits, style="area")],
        marks=marks,
        caption=f"{waited / (total or 1):.1%} of all steps together.",
    )
