"""The curves of a run, as SVG in the colours of the page that shows them."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from training.reporting.status import RunState

INK, MUTED, ACCENT = "#010101", "#020202", "#030303"  # become the page's variables --ink, --muted and --accent
SMOOTHING_SHARE = 1 / 60  # of the run's steps, in the bold line of the loss
ROUND = (1, 2, 2.5, 5, 10)  # what axes count in
Evaluation = dict[str, Any] | None
Axes = Any


def smoothed(values: list[float]) -> list[float]:
    """Return the exponential mean at each step, without the bias of its start; what is not finite is left out."""
    keep = 1 - 1 / max(3.0, len(values) * SMOOTHING_SHARE)
    total = weight = 0.0
    means = []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight if weight else math.nan)
    return means


def plots(state: RunState, evaluation: Evaluation) -> dict[str, Markup]:
    """Return an SVG for each plot of the page."""
    lines = state.lines
    return {
        "loss": svg("loss", lambda axes: draw_loss(axes[0], state, evaluation)),
        "rate": svg("rate", lambda axes: draw(axes[0], lines, "learning_rate", "{x:.1e}")),
        "norm": svg("norm", lambda axes: draw(axes[0], lines, "gradient_norm", "{x:g}")),
        "speed": svg("speed", lambda axes: draw_speed(axes, lines), heights=(3, 1)),
    }


def draw(axes: Axes, lines: list[dict[str, Any]], key: str, form: str, *, bold: bool = True) -> None:
    steps, values = [line["step"] for line in lines], [line[key] for line in lines]
    colour, width = (ACCENT, 1.2) if bold else (MUTED, 0.5)
    axes.plot(steps, values, color=colour, linewidth=width, marker="." if len(lines) < 3 else "")
    axes.yaxis.set_major_formatter(form)


def draw_loss(axes: Axes, state: RunState, evaluation: Evaluation) -> None:
    """Draw each step, the running mean, the restarts, and the loss of held-out rows: during the run, and after it."""
    draw(axes, state.lines, "loss", "{x:g}", bold=False)
    means = smoothed([line["loss"] for line in state.lines])
    axes.plot([line["step"] for line in state.lines], means, color=ACCENT, linewidth=1.8)
    for attempt in state.attempts[1:]:
        if attempt.start["step"] > 0:
            axes.axvline(attempt.start["step"], color=INK, linewidth=0.6, linestyle=(0, (4, 3)))
    validation = sorted((step, loss) for step, loss in state.validation.items() if math.isfinite(loss))
    axes.plot(*zip(*validation, strict=True) if validation else ([], []), color=INK, linewidth=0.7, marker="o", ms=3)
    found = [(evaluation["models"][model]["loss"], model) for model in ("base", "tuned")] if evaluation else []
    axes.figure.subplots_adjust(right=0.84 if found else 0.99)
    for (loss, model), side in zip(sorted(found, reverse=True), ("bottom", "top"), strict=False):
        axes.axhline(loss, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.text(1.015, loss, f"{model} {loss:.2f}", transform=axes.get_yaxis_transform(), va=side, color=INK)


def draw_speed(axes: list[Axes], lines: list[dict[str, Any]]) -> None:
    draw(axes[0], lines, "tokens_per_s", "{x:,.0f}")
    waits = [line["data_wait_s"] / line["step_s"] if line["step_s"] else 0.0 for line in lines]
    axes[0].set_ylim(bottom=0)
    axes[1].fill_between([line["step"] for line in lines], waits, color=MUTED, linewidth=0.8)
    axes[1].set_ylim(0, max(0.1, *waits))
    axes[1].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def svg(name: str, drawing: Callable[[list[Axes]], None], heights: Sequence[int] = (1,)) -> Markup:
    """Return a drawing as inline SVG in the page's own colours and type; `name` keeps its ids apart from others'."""
    import matplotlib  # slow to import
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9.5}):
        figure = Figure(figsize=(5.4, 2.7))
        axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        figure.subplots_adjust(left=0.12, right=0.99, top=0.96, bottom=0.1, hspace=0.2)
        for one, ticks in zip(axes, (5, 2), strict=False):
            one.spines[["left", "right", "top"]].set_visible(False)
            one.spines["bottom"].set_color(MUTED)
            one.tick_params(length=0, colors=MUTED)
            one.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.6)
            one.yaxis.set_major_locator(MaxNLocator(ticks, steps=ROUND))
            one.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND, integer=True))
            one.set_facecolor("none")
        drawing(list(axes))
        target = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(target, format="svg", facecolor="none", metadata=nothing)
    text = re.sub(r"^.*?(?=<svg)|<style.*?</style>", "", target.getvalue(), flags=re.DOTALL)
    text = re.sub(r"<svg [^>]*(viewBox=\"[^\"]*\")[^>]*>", r'<svg role="img" \1>', text)
    text = re.sub(r"font-family: [^\";]*;? ?|(?<=\.\d\d)\d+(?=[ \n\"])", "", text)  # coordinates to 1/100 point
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in ((INK, "ink"), (MUTED, "muted"), (ACCENT, "accent")):
        text = text.replace(colour, f"var(--{variable})")
    return Markup(text)
