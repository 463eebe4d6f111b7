"""The page of a study: its held-out losses by trial, by step and by each searched key, and a table of its trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import write_text
from launch.tuning.results import TrialResult, best_of
from launch.tuning.space import Range, Space, spelled
from training.reporting.page.charts import Chart, Series
from training.reporting.page.rendering import render

BEST, COMPLETE, OTHER = 2, 1, 0  # numbers of colours of the page's style sheet
OTHERS = "pruned, failed or unfinished"
LOSS = "nats per token"


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
    keys = list(space.parameters)
    page = render("study.html", name=name, summary=summary, charts=charts(results, space), keys=keys, rows=rows)
    write_text(path, page)


def cells(result: TrialResult, space: Space) -> list[str]:
    loss = "" if result.loss is None else f"{result.loss:.4f}"
    values = [spelled(result.values[key]) if key in result.values else "" for key in space.parameters]
    return [str(result.number), result.state, loss, str(result.step), *values, result.reason]


def charts(results: Sequence[TrialResult], space: Space) -> list[Chart]:
    """Return the charts that the results allow."""
    scored = [result for result in results if result.loss is not None and math.isfinite(result.loss)]
    if not scored:
        return []
    slices = [by_key(scored, space, key, number) for number, key in enumerate(space.parameters)]
    return [by_trial(scored), by_step(scored), *slices]


def by_trial(results: Sequence[TrialResult]) -> Chart:
    """Return the last held-out loss of each trial, and the lowest of the complete ones so far."""
    best = [best_of(results[: place + 1]) for place in range(len(results))]
    known = [(result.number, found.loss or 0.0) for result, found in zip(results, best, strict=True) if found]
    so_far = Series(name="lowest so far", x=[x for x, _ in known], y=[y for _, y in known], style="steps")
    return Chart(
        key="trials",
        title="Held-out loss by trial",
        x_name="trial",
        y_name=LOSS,
        series=[so_far, *points(results, [result.number for result in results])],
        caption="After the last step of each trial.",
    )


def by_step(results: Sequence[TrialResult]) -> Chart:
    """Return the held-out losses of each trial, the best trial on top."""
    best = best_of(results)
    ordered = sorted(results, key=lambda r: (r is best, r.state == "complete", -(r.loss or 0.0)))
    return Chart(
        key="steps",
        title="Held-out loss by step",
        x_name="step",
        y_name=LOSS,
        series=[curve(result, is_best=result is best) for result in ordered],
        caption="A trial is pruned where its loss is above the median of the earlier ones at the same step.",
    )


def curve(result: TrialResult, *, is_best: bool) -> Series:
    found = sorted((step, loss) for step, loss in result.losses.items() if math.isfinite(loss))
    is_complete = result.state == "complete"
    return Series(
        name=f"trial {result.number}",
        group="best" if is_best else "complete" if is_complete else OTHERS,
        x=[step for step, _ in found],
        y=[loss for _, loss in found],
        names=[f"trial {result.number}"] * len(found),
        style="bold" if is_best else "thin",
        colour=BEST if is_best else COMPLETE if is_complete else OTHER,
    )


def by_key(results: Sequence[TrialResult], space: Space, key: str, number: int) -> Chart:
    """Return the last held-out loss of each trial by its value of one key."""
    parameter = space.parameters[key]
    found = [result for result in results if key in result.values]
    options: dict[str, Any]
    if isinstance(parameter, Range):
        places = [result.values[key] for result in found]
        options = {"x_log": parameter.log, "x_ends": (parameter.low, parameter.high)}
    else:
        names = [spelled(value) for value in parameter.choices]
        places = [names.index(spelled(result.values[key])) for result in found]
        options = {"x_names": names}
    return Chart(
        key=f"key-{number}",
        title=f"Held-out loss by {key}",
        x_name=key,
        y_name=LOSS,
        series=points(found, places),
        **options,
    )


def points(results: Sequence[TrialResult], places: Sequence[float]) -> list[Series]:
    """Return the last held-out losses as dots: the best trial, the complete ones, and the others."""
    best = best_of(results)
    placed = sorted(zip(places, results, strict=True), key=lambda pair: (pair[0], pair[1].number))
    groups = {
        OTHERS: (OTHER, [(x, r) for x, r in placed if r.state != "complete"]),
        "complete": (COMPLETE, [(x, r) for x, r in placed if r.state == "complete" and r is not best]),
        "best": (BEST, [(x, r) for x, r in placed if r is best]),
    }
    return [
        Series(
            name=name,
            x=[x for x, _ in chosen],
            y=[result.loss or 0.0 for _, result in chosen],
            names=[f"trial {result.number}" for _, result in chosen],
            style="dots",
            colour=colour,
        )
        for name, (colour, chosen) in groups.items()
        if chosen
    ]
