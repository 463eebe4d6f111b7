"""One HTML page about a run: figures, curves, data, answers. It needs no network, no script and no server."""

from __future__ import annotations

import importlib.metadata
import io
import math
import re
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cluster.errors import DataError
from cluster.files import write_text
from cluster.paths import RunPaths
from cluster.schema import read_yaml
from data_prep.shards import read_manifest
from training.status import RunState, Segment, command, duration, read_record, read_state

COLOURS = {"ink": "#010101", "muted": "#020202", "accent": "#030303"}  # become CSS variables in the finished SVG
SMOOTHING_SHARE = 1 / 30  # of the run's steps, in the bold line
PACKAGES = ("torch", "deepspeed", "transformers")
Evaluation = dict[str, Any] | None
Axes = Any


def write_report(paths: RunPaths, shards: Path, name: str) -> Path:
    """Write the run's `report.html` from what the run holds so far; return its path.

    What is missing is named with the command that makes it. The page depends on nothing but the run's files, except
    for the line that says when it was written.
    """
    state, evaluation = read_state(paths), read_record(paths.evaluation)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    page = environment.from_string(PAGE).render(
        style=Markup(STYLE),
        name=name,
        subtitle=" · ".join(filter(None, (model_name(paths, evaluation), state_text(state)))),
        figures=key_figures(state, evaluation),
        plots=plots(state, evaluation) if state.lines else [],
        segments=[segment_cells(segment, last=segment is state.segments[-1]) for segment in state.segments],
        data=data_tables(shards),
        scores=scores(evaluation),
        evaluation=evaluation,
        plan=plan_pairs(read_record(paths.plan)),
        config=paths.config.read_text(encoding="utf-8") if paths.config.is_file() else None,
        command={verb: command(verb, paths) for verb in ("prepare", "train", "evaluate")},
        versions=", ".join(f"{package} {version_of(package)}" for package in PACKAGES),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
    )
    write_text(paths.report, page)
    return paths.report


def model_name(paths: RunPaths, evaluation: Evaluation) -> str:
    model = read_yaml(paths.config).get("model", {}) if paths.config.is_file() else {}
    if model.get("path"):
        return str(model["path"])
    if model.get("new"):
        return f"new {model['new'].get('model_type', 'llama')} model"
    return str(evaluation["models"]["base"]["path"]) if evaluation else ""


def state_text(state: RunState) -> str:
    if not state.lines:
        return "never trained"
    return "finished" if state.is_finished else f"step {state.step:,} of {state.total_steps or '?':,}"


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def key_figures(state: RunState, evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Return label, value and remark of the figures at the top."""
    if not state.lines:
        return []
    tokens = sum(line["trained_tokens"] for line in state.lines)
    speed = statistics.median(line["tokens_per_s"] for line in state.lines)
    share = state.kept_s / state.elapsed_s if state.elapsed_s else 1.0
    steps = f"{state.step:,}" if state.is_finished else f"{state.step:,} of {state.total_steps or '?':,}"
    return [
        *loss_figures(state, evaluation),
        ("Steps", steps, f"median {state.step_s:.3g} s a step"),
        ("Tokens trained", short(tokens), f"median {speed:,.0f} tokens/s, masked and padding included"),
        ("Wall time", duration(state.elapsed_s), f"{share:.0%} of it in steps that were kept"),
        ("Restarts", str(state.restarts), "training goes on from the newest checkpoint" if state.restarts else ""),
    ]


def loss_figures(state: RunState, evaluation: Evaluation) -> list[tuple[str, str, str]]:
    if evaluation is None:
        first, last = state.lines[0]["loss"], smoothed([line["loss"] for line in state.lines])[-1]
        return [("Training loss", f"{first:.3f} → {last:.3f}", "first step → running mean at the end")]
    base, tuned = evaluation["models"]["base"], evaluation["models"]["tuned"]
    change = tuned["loss"] / base["loss"] - 1
    held_out = f"base model → tuned, {evaluation['trained_tokens']:,} tokens"
    return [
        ("Held-out loss", f"{base['loss']:.3f} → {tuned['loss']:.3f}", f"{held_out}: {change:+.0%}"),
        ("Perplexity", f"{perplexity(base)} → {perplexity(tuned)}", "choices the model wavers between, a token"),
    ]


def perplexity(score: dict[str, Any]) -> str:
    value = score["perplexity"]
    return f"{value:.2f}" if value < 100 else short(value)


def short(number: float) -> str:
    """Return a count in three or four figures."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if size <= number < 1e15:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}" if number < 1e15 else f"{number:.2g}"


def segment_cells(segment: Segment, *, last: bool) -> dict[str, str]:
    start, end = segment.start, segment.end
    if end:
        why = "finished" if end["reason"] == "done" else end["reason"]
        why, seconds = f"{why} (exit code {end['exit_code']})", duration(end["seconds"])
        until, ended = f"{end['step']:,}", clock(end["time"])
    else:
        why = "no end was written: it runs, or was killed" if last else "killed: no end was written"
        until, ended, seconds = f"{start['step'] + segment.kept_steps:,} kept", "—", f"at least {duration(segment.kept_s)}"
    steps = f"{start['step']:,} → {until}"
    where = f"{start['world_size']} on {start['host']}" if "host" in start else str(start.get("world_size", ""))
    return dict(start=clock(start["time"]), end=ended, where=where, steps=steps, seconds=seconds, why=why)


def clock(time: str) -> str:
    return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M:%S")


def data_tables(shards: Path) -> dict[str, Any]:
    """Return documents by source and the use of tokens; or, without prepared data, the reason."""
    try:
        manifest = read_manifest(shards)
    except DataError as error:
        return {"problem": str(error)}
    total = sum(manifest.tokens.values()) or 1
    explained = {"trained": "the model learns to say them", "masked": "read, not learnt", "padding": "empty row ends"}
    return {
        "problem": None,
        "documents": [
            (source, counts["read"], counts["kept"], sorted(counts["rejected"].items(), key=lambda item: -item[1]))
            for source, counts in manifest.documents.items()
        ],
        "tokens": [
            (use, count, count / total, explained.get(use, "")) for use, count in manifest.tokens.items() if count
        ],
        "rows": {split: manifest.rows(split) for split in manifest.splits},
        "row_tokens": manifest.row_tokens,
        "packing": manifest.packing,
    }


def scores(evaluation: Evaluation) -> list[tuple[str, str, str, str]]:
    """Return each measure with its value before and after, and how to read it."""
    if evaluation is None:
        return []
    base, tuned = evaluation["models"]["base"], evaluation["models"]["tuned"]
    rows: list[tuple[str, str, str, Callable[[Any], str]]] = [
        ("Loss", "loss", "nats a token; lower is better", "{:.4f}".format),
        ("Perplexity", "perplexity", "e to the power of the loss", "{:,.2f}".format),
        ("Bits per byte", "bits_per_byte", "compares models with different tokenizers", "{:.4f}".format),
        ("Stop rate", "stop_rate", "share of answers that the model ended by itself", "{:.0%}".format),
    ]
    return [
        (label, shown(base[key]), shown(tuned[key]), remark)
        for label, key, remark, shown in rows
        if base[key] is not None and tuned[key] is not None
    ]


def plan_pairs(plan: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the plan and its training settings, in words."""
    if plan is None:
        return []
    values = {**{key: value for key, value in plan.items() if key != "config"}, **plan.get("config", {})}
    return [(key.replace("_", " "), shown_value(value)) for key, value in values.items() if value is not None]


def shown_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value[:12]}…" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else str(value)


def smoothed(values: list[float]) -> list[float]:
    """Return the exponential mean at each step, without the bias of its start; what is not finite is left out."""
    keep = 1 - 1 / max(1.0, len(values) * SMOOTHING_SHARE)
    total = weight = 0.0
    means = []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight if weight else math.nan)
    return means


def plots(state: RunState, evaluation: Evaluation) -> list[tuple[str, Markup, str]]:
    """Return title, SVG and caption of each plot."""
    lines = state.lines
    waited = sum(line["data_wait_s"] for line in lines) / (state.kept_s or 1.0)
    marks = " At the right: the held-out loss of base and tuned model." if evaluation else ""
    restarts = " Dashed: a restart." if state.restarts else ""
    return [
        (
            "Loss",
            svg("loss", lambda axes: draw_loss(axes[0], state, evaluation)),
            f"How much the next token surprises the model. Thin: each step; bold: running mean.{marks}{restarts}",
        ),
        (
            "Learning rate",
            svg("rate", lambda axes: draw(axes[0], lines, "learning_rate", "{x:.3g}")),
            "How far a step moves the weights: warm-up, then the schedule.",
        ),
        (
            "Gradient norm",
            svg("norm", lambda axes: draw(axes[0], lines, "gradient_norm", "{x:g}")),
            "Before clipping. Single spikes are odd batches; a rising line is a learning rate that is too high.",
        ),
        (
            "Tokens per second",
            svg("speed", lambda axes: draw_speed(axes, lines), heights=[3, 1]),
            f"All ranks together. Below: the share of each step spent waiting for data, {waited:.1%} over the run.",
        ),
    ]


def draw(axes: Axes, lines: list[dict[str, Any]], key: str, form: str, *, bold: bool = True) -> None:
    steps, values = [line["step"] for line in lines], [line[key] for line in lines]
    width, colour = (1.5, COLOURS["accent"]) if bold else (0.6, COLOURS["muted"])
    axes.plot(steps, values, color=colour, linewidth=width, marker="." if len(lines) < 3 else "")
    axes.yaxis.set_major_formatter(form)


def draw_loss(axes: Axes, state: RunState, evaluation: Evaluation) -> None:
    draw(axes, state.lines, "loss", "{x:g}", bold=False)
    steps = [line["step"] for line in state.lines]
    axes.plot(steps, smoothed([line["loss"] for line in state.lines]), color=COLOURS["accent"], linewidth=1.8)
    for segment in state.segments[1:]:
        if segment.start["step"] > 0:
            axes.axvline(segment.start["step"], color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (3, 3)))
    found = [(evaluation["models"][model]["loss"], model) for model in ("base", "tuned")] if evaluation else []
    for (loss, model), side in zip(sorted(found, reverse=True), ("bottom", "top"), strict=False):
        axes.axhline(loss, color=COLOURS["ink"], linewidth=0.8, linestyle=(0, (1, 2)))
        place = axes.get_yaxis_transform()
        axes.text(1.02, loss, f"{model} {loss:.2f}", transform=place, va=side, color=COLOURS["ink"])


def draw_speed(axes: list[Axes], lines: list[dict[str, Any]]) -> None:
    draw(axes[0], lines, "tokens_per_s", "{x:,.0f}", bold=len(lines) < 100)
    axes[0].set_ylim(bottom=0)
    waits = [line["data_wait_s"] / (line["step_s"] or 1.0) for line in lines]
    axes[1].fill_between([line["step"] for line in lines], waits, color=COLOURS["accent"], linewidth=0.8)
    axes[1].set_ylim(0, max(0.1, *waits))
    axes[1].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def svg(name: str, drawing: Callable[[list[Axes]], None], heights: list[int] | None = None) -> Markup:
    """Return a drawing as inline SVG in the page's own colours and type; `name` keeps its ids apart from others'."""
    import matplotlib  # slow to import
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 8.5, "path.simplify_threshold": 1.0}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5.4, 2.7), facecolor="none")
        axes = list(figure.subplots(len(heights or [1]), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
        figure.subplots_adjust(left=0.12, right=0.87, top=0.96, bottom=0.11, hspace=0.18)
        for place, one in enumerate(axes):
            one.set_facecolor("none")
            one.spines[["left", "right", "top"]].set_visible(False)
            one.spines["bottom"].set_color(COLOURS["muted"])
            one.tick_params(length=0, colors=COLOURS["muted"])
            one.grid(axis="y", color=COLOURS["muted"], alpha=0.25, linewidth=0.6)
            one.yaxis.set_major_locator(MaxNLocator(5 if place == 0 else 2))
            one.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        drawing(axes)
        target = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(target, format="svg", metadata=nothing, facecolor="none")
    return Markup(adapted(target.getvalue(), name))
