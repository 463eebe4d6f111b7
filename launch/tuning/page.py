"""The picture of a study: one page without scripts, with the loss by trial, by step and by each searched key."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from cluster.disk.atomic_files import write_text
from launch.tuning.results import TrialResult, best_of
from launch.tuning.space import Range, Space, spelled

INK, ACCENT, MUTED = "#1f2933", "#2563eb", "#9aa5b1"
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: tuning</title>
<style>
:root { color-scheme: light dark; --card: #fff; --back: #f5f7fa; --ink: #1f2933; --line: #d5dbe1;
  --muted: #66727f; --accent: #2563eb }
@media (prefers-color-scheme: dark) {
  :root { --card: #1b2027; --back: #12161b; --ink: #e6eaee; --line: #39424d; --muted: #97a3af; --accent: #6ea0ff }
}
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 24px 16px; max-width: 1080px;
  background: var(--back); color: var(--ink) }
h1 { font-size: 22px; margin: 0 } p { color: var(--muted); margin: 4px 0 20px }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 14px }
figure, .table { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px }
figure { padding: 12px } figcaption { font-weight: 600; margin-bottom: 6px }
svg { width: 100%; height: auto; display: block; color: var(--ink) }
.table { overflow-x: auto; margin-top: 20px }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 6px 12px; border-bottom: 1px solid var(--line); white-space: nowrap }
td:last-child { white-space: normal; color: var(--muted) } tr.best td { font-weight: 600; color: var(--accent) }
</style>
<h1>{{ name }}: tuning</h1>
<p>{{ summary }}</p>
<div class="plots">
{% for title, picture in plots %}<figure><figcaption>{{ title }}</figcaption>{{ picture }}</figure>
{% endfor %}</div>
<div class="table"><table>
<tr><th>trial<th>state<th>held-out loss<th>step{% for key in keys %}<th>{{ key }}{% endfor %}<th></tr>
{% for row in rows %}<tr{% if row.is_best %} class="best"{% endif %}>
{%- for cell in row.cells %}<td>{{ cell }}{% endfor %}</tr>
{% endfor %}</table></div>
</html>
"""


def write_page(path: Path, name: str, results: Sequence[TrialResult], space: Space) -> None:
    """Write the page of a study."""
    best = best_of(results)
    rows = [{"is_best": result is best, "cells": cells(result, space)} for result in results]
    counts = {
        state: sum(result.state == state for result in results) for state in dict.fromkeys(r.state for r in results)
    }
    summary = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no trials yet"
    if best is not None:
        summary += f"; best: trial {best.number}, held-out loss {best.loss:.4f}"
    page = Environment(autoescape=True).from_string(PAGE)
    plots = pictures(results, space)
    write_text(path, page.render(name=name, summary=summary, plots=plots, keys=list(space.parameters), rows=rows))


def cells(result: TrialResult, space: Space) -> list[str]:
    loss = "" if result.loss is None else f"{result.loss:.4f}"
    values = [spelled(result.values[key]) if key in result.values else "" for key in space.parameters]
    return [str(result.number), result.state, loss, str(result.step), *values, result.reason]


def pictures(results: Sequence[TrialResult], space: Space) -> list[tuple[str, Markup]]:
    """Return title and SVG of each plot that the results allow."""
    scored = [result for result in results if result.loss is not None and math.isfinite(result.loss)]
    if not scored:
        return []
    plots = [
        ("Held-out loss by trial", svg(lambda axes: draw_trials(axes, scored))),
        ("Held-out loss by step", svg(lambda axes: draw_curves(axes, scored))),
    ]
    for key in space.parameters:
        plots.append((f"Held-out loss by {key}", svg(partial(draw_slice, results=scored, space=space, key=key))))
    return plots


def draw_trials(axes: Any, results: Sequence[TrialResult]) -> None:
    draw_points(axes, results, [result.number for result in results])
    complete = [result for result in results if result.state == "complete" and result.loss is not None]
    lowest = [min(r.loss or 0.0 for r in complete[: place + 1]) for place in range(len(complete))]
    axes.step([result.number for result in complete], lowest, where="post", color=ACCENT, linewidth=1.2)
    axes.set_xlabel("trial")


def draw_curves(axes: Any, results: Sequence[TrialResult]) -> None:
    for result in results:
        points = sorted((step, loss) for step, loss in result.losses.items() if math.isfinite(loss))
        colour = ACCENT if result.state == "complete" else MUTED
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1, marker="o", markersize=2.5)
        axes.annotate(
            str(result.number), points[-1], xytext=(3, 0), textcoords="offset points", fontsize=7, color=MUTED
        )
    axes.set_xlabel("step")


def draw_slice(axes: Any, results: Sequence[TrialResult], space: Space, key: str) -> None:
    found = [result for result in results if key in result.values]
    parameter = space.parameters[key]
    if isinstance(parameter, Range):
        draw_points(axes, found, [result.values[key] for result in found])
        axes.set_xscale("log" if parameter.log else "linear")
    else:
        names = [spelled(value) for value in parameter.choices]
        draw_points(axes, found, [names.index(spelled(result.values[key])) for result in found])
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel(key)


def draw_points(axes: Any, results: Sequence[TrialResult], places: Sequence[float]) -> None:
    """Draw complete trials as full points; pruned and unfinished ones as empty ones, at their last loss."""
    for result, place in zip(results, places, strict=True):
        is_complete = result.state == "complete"
        colour = ACCENT if is_complete else MUTED
        axes.plot(
            [place], [result.loss], "o", color=colour, markerfacecolor=colour if is_complete else "none", markersize=5
        )
        axes.annotate(
            str(result.number), (place, result.loss), xytext=(4, 3), textcoords="offset points", fontsize=7, color=MUTED
        )


def svg(drawing: Callable[[Any], None]) -> Markup:
    """Return a drawing as inline SVG with the page's colour for its text."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(4.6, 2.8), layout="constrained")
        axes = figure.subplots()
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.spines["bottom"].set_color(MUTED)
        axes.tick_params(length=0, colors=INK)
        axes.grid(axis="y", color=MUTED, alpha=0.3, linewidth=0.6)
        axes.set_facecolor("none")
        drawing(axes)
        target = io.StringIO()
        figure.savefig(
            target, format="svg", facecolor="none", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = re.sub(r"^.*?(?=<svg)|<style.*?</style>", "", target.getvalue(), flags=re.DOTALL)
    text = re.sub(r"<svg [^>]*(viewBox=\"[^\"]*\")[^>]*>", r'<svg role="img" \1>', text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*;?", r"font-size: \1;", text)
    text = re.sub(r"fill: #000000|(?<=<text style=\")", "fill: currentColor; ", text)
    return Markup(text.replace(INK, "currentColor"))  # matplotlib has escaped the texts
