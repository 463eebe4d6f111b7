"""What differs between runs: their curves, settings and figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.config_loading import flat
from cluster.paths import RunPaths
from cluster.wording import count_of
from data_prep.shards import Manifest
from training.reporting.page.charts import Chart, Series
from training.reporting.page.facts import config_of, model_name
from training.reporting.page.goodput import goodput, wall_time
from training.reporting.plots import Evaluation, smoothed, speed_chart
from training.reporting.run_state import RunState
from training.reporting.status import is_stale
from training.reporting.wording import duration, short

COLOURS = 6  # of the page's style sheet
SHOWN_CHARS = 160  # of a setting
COUNTED = ("rows", "documents", "trained_tokens")  # what an evaluation says of its held-out rows
NAMES = ("name", "folder", "data.folder")  # settings that only say where a run is
Record = Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One of several runs, and all that its folder holds."""

    name: str
    paths: RunPaths
    state: RunState
    plan: Record
    evaluation: Evaluation
    manifest: Manifest | None


def comparison_charts(runs: Sequence[Compared]) -> list[Chart]:
    """Return the losses over steps and over trained tokens, and the speeds, of the runs that have steps."""
    trained = [(number, run) for number, run in enumerate(runs) if run.state.lines]
    if not trained:
        return []
    steps = {run.name: [line["step"] for line in run.state.lines] for _, run in trained}
    tokens = {run.name: cumulated(run.state) for _, run in trained}
    told = "Running mean of the training loss; dots: held-out loss."
    over = [
        Chart(
            key=key,
            title=title,
            x_name=x_name,
            y_name="nats per token",
            caption=told,
            is_wide=True,
            series=[one for number, run in trained for one in loss_series(run, xs[run.name], number % COLOURS + 1)],
        )
        for key, title, x_name, xs in (
            ("steps", "Loss by step", "step", steps),
            ("tokens", "Loss by tokens", "trained tokens", tokens),
        )
    ]
    speeds = [
        Series(
            name=run.name,
            x=steps[run.name],
            y=[line["tokens_per_s"] for line in run.state.lines],
            colour=number % COLOURS + 1,
        )
        for number, run in trained
    ]
    return [*over, speed_chart(speeds, is_wide=True)]


def cumulated(state: RunState) -> list[float]:
    """Return how many tokens were trained by the end of each step."""
    total, found = 0.0, []
    for line in state.lines:
        total += line["trained_tokens"]
        found.append(total)
    return found


def loss_series(run: Compared, x: Sequence[float], colour: int) -> list[Series]:
    """Return the running mean of a run's loss and, if it has any, its held-out losses."""
    means = Series(name=run.name, x=x, y=smoothed([line["loss"] for line in run.state.lines]), colour=colour)
    place = {line["step"]: at for line, at in zip(run.state.lines, x, strict=True)}
    held_out = [(place[step], loss) for step, loss in sorted(run.state.validation.items()) if step in place]
    if not held_out:
        return [means]
    xs, ys = zip(*held_out, strict=True)
    return [means, Series(name=f"{run.name}, held-out", x=xs, y=ys, style="dots", colour=colour)]


def differing_settings(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Return the settings that are not the same in all runs, each with the value in every run."""
    found = [dict(settings(run)) for run in runs]
    keys = dict.fromkeys(key for values in found for key in values)
    keys = {key: None for key in keys if not any(other.startswith(f"{key}.") for other in keys)}  # a section, or null
    rows = [(key, [cut(values.get(key, "not set")) for values in found]) for key in keys if key not in NAMES]
    return [(key, values) for key, values in rows if len({one.get(key) for one in found}) > 1]


def settings(run: Compared) -> Iterator[tuple[str, str]]:
    """Yield a run's settings, and what of its plan follows from the machine."""
    for key, value in flat(config_of(run.paths)):
        yield key, "none" if value in (None, [], {}) else str(value)
    if run.plan is not None:
        for key in ("world_size", "accumulation_steps", "total_steps", "parameters", "trained_parameters", "rows"):
            if key in run.plan:
                yield f"plan: {key}", f"{run.plan[key]:,}"


def cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def figures_by_run(runs: Sequence[Compared]) -> list[tuple[str, str, list[str]]]:
    """Return the label, the remark and every run's value of each figure that any run has."""
    columns = [dict(((label, remark), value) for label, remark, value in figures(run)) for run in runs]
    keys = dict.fromkeys(key for column in columns for key in column)
    return [(label, remark, [column.get((label, remark), "—") for column in columns]) for label, remark in keys]


def figures(run: Compared) -> Iterator[tuple[str, str, str]]:
    """Yield label, remark and value of a run's figures."""
    yield "Model", "", model_name(run.paths, run.evaluation) or "—"
    if run.evaluation:
        yield "Evaluated", "what the figures by evaluate are of", evaluated_text(run)
        for key, label in (("loss", "Held-out loss"), ("bits_per_byte", "Bits per byte")):
            yield label, "tuned model, by `evaluate`".replace("`", ""), f"{run.evaluation['models']['tuned'][key]:.4f}"
    held_out = [(loss, step) for step, loss in run.state.validation.items() if math.isfinite(loss)]
    if held_out:
        yield "Lowest held-out loss", "during training", "{:.4f} at step {:,}".format(*min(held_out))
    if lines := run.state.lines:
        yield "Training loss", "running mean at the end", f"{smoothed([line['loss'] for line in lines])[-1]:.4f}"
        yield "Steps", "", f"{run.state.step:,} of {run.state.total_steps or 0:,}"
        yield "Tokens trained", "", short(sum(line["trained_tokens"] for line in lines))
        yield "Speed", "median tokens per second", f"{statistics.median(line['tokens_per_s'] for line in lines):,.0f}"
        yield from time_figures(run.state)


def evaluated_text(run: Compared) -> str:
    """Return what a run's evaluation is of: rows, precision, and an export that is no longer there."""
    evaluation = dict(run.evaluation or {})
    older = "an earlier export" if is_stale(evaluation, run.paths.export) else ""
    return ", ".join(filter(None, [counts_text(evaluation, COUNTED), evaluation.get("dtype"), older]))


def counts_text(evaluation: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return over how much an evaluation was made: 3 rows, 6 documents, 186 trained tokens."""
    nouns = {key: key.removesuffix("s").replace("_", " ") for key in keys}
    return ", ".join(count_of(evaluation[key], nouns[key]) for key in keys if key in evaluation)


def time_figures(state: RunState) -> Iterator[tuple[str, str, str]]:
    shares = wall_time(state)
    elapsed = math.fsum(share.seconds for share in shares)
    yield "Wall time", "", duration(elapsed)
    yield "Goodput", "share of it in steps that were kept", f"{goodput(shares):.0%}" if elapsed else "—"
    yield "Restarts", "", str(state.restarts)
    yield "Skipped steps", "", f"{state.skipped:,}"
