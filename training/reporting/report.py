"""The report of a run: one HTML page with figures, curves, data and answers. It needs no network, script or server."""

from __future__ import annotations

import importlib.metadata
import json
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cluster.config_loading import read_yaml
from cluster.disk.atomic_files import write_text
from cluster.errors import DataError
from cluster.paths import RunPaths
from data_prep.shards import Manifest, read_manifest
from training.config import TrainConfig
from training.plan import Plan
from training.reporting.incidents import incidents
from training.reporting.plots import Evaluation, plots, smoothed
from training.reporting.status import RunState, command, duration, read_record, read_state, short, validation_text

SHOWN_INCIDENTS = 40


def write_report(paths: RunPaths, shards: Path, name: str) -> Path:
    """Write the run's `report.html` from what the run's folder holds so far; return its path.

    Where something is missing, the page shows the command that makes it. The page follows from the run's files alone,
    except for the line that says when and with which versions it was written.
    """
    state, evaluation = read_state(paths), read_record(paths.evaluation)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"duration": duration, "short": short}
    manifest, problem = manifest_or_problem(shards)
    page = environment.from_string(PAGE).render(
        style=Markup(STYLE),
        name=name,
        model=model_name(paths, evaluation),
        state=state,
        figures=[*loss_figures(state, evaluation), *run_figures(state)] if state.lines else [],
        plots=plots(state, evaluation) if state.lines else {},
        validation=validation_text(state.validation),
        incidents=incidents(state.events),
        shown=SHOWN_INCIDENTS,
        manifest=manifest,
        problem=problem,
        evaluation=evaluation,
        plan=plan_text(read_record(paths.plan)),
        config=paths.config.read_text(encoding="utf-8") if paths.config.is_file() else "",
        commands={verb: command(verb, paths) for verb in ("train", "evaluate", "inspect")},
        versions=[f"{package} {version_of(package)}" for package in ("torch", "deepspeed", "transformers")],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
    )
    write_text(paths.report, page)
    return paths.report


def manifest_or_problem(shards: Path) -> tuple[Manifest | None, str]:
    try:
        return read_manifest(shards), ""
    except DataError as error:
        return None, str(error)


def model_name(paths: RunPaths, evaluation: Evaluation) -> str:
    model = read_yaml(paths.config).get("model") or {} if paths.config.is_file() else {}
    if model.get("path") or model.get("new"):
        return str(model.get("path") or f"new {model['new'].get('model_type', 'llama')} model")
    return str(evaluation["models"]["base"]["path"]) if evaluation else ""


def plan_text(record: dict[str, Any] | None) -> str:
    """Return the plan as it was printed; a plan that another version of this program wrote, as JSON."""
    if record is None:
        return ""
    try:
        return Plan(**{**record, "config": TrainConfig.model_validate(record["config"])}).as_text()
    except (KeyError, TypeError, ValueError):
        return json.dumps(record, indent=2)


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def loss_figures(state: RunState, evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Return label, value and remark: held-out loss of the base and tuned model, or the training loss without them."""
    if evaluation is None:
        first, last = state.lines[0]["loss"], smoothed([line["loss"] for line in state.lines])[-1]
        training = ("Training loss", f"{first:.3f} → {last:.3f}", "first step → running mean at the end")
        return [training, *validation_figures(state.validation)]
    base, tuned = evaluation["models"]["base"], evaluation["models"]["tuned"]
    change = f"{tuned['loss'] / base['loss'] - 1:+.0%}" if base["loss"] else ""
    perplexity = f"{short(base['perplexity'])} → {short(tuned['perplexity'])}"
    return [
        ("Held-out loss", f"{base['loss']:.3f} → {tuned['loss']:.3f}", f"base → tuned model, {change}"),
        ("Perplexity", perplexity, "equally likely next tokens, in effect"),
    ]


def validation_figures(losses: dict[int, float]) -> list[tuple[str, str, str]]:
    if not losses:
        return []
    best = min(losses, key=lambda step: losses[step])
    return [
        ("Validation loss", f"{losses[max(losses)]:.3f}", f"the newest; lowest: {losses[best]:.3f} at step {best:,}")
    ]


def run_figures(state: RunState) -> list[tuple[str, str, str]]:
    tokens = sum(line["trained_tokens"] for line in state.lines)
    speed = statistics.median(line["tokens_per_s"] for line in state.lines)
    share = f"{state.kept_s / state.elapsed_s:.0%} of it in steps that were kept" if state.elapsed_s else ""
    return [
        ("Steps", f"{state.step:,}", f"of {state.total_steps or 0:,}; {state.step_s or 0:.3g} s a step"),
        ("Tokens trained", short(tokens), f"{speed:,.0f} tokens/s, including masked ones and padding"),
        ("Wall time", duration(state.elapsed_s), share),
        ("Restarts", str(state.restarts), "each from the newest checkpoint" if state.restarts else "a single attempt"),
    ]


STYLE = """
:root { color-scheme: light dark;
  --ink: #1c1b19; --muted: #6d6a64; --line: #dedad2; --paper: #fcfbf9; --accent: #1d5c9e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e6e0; --muted: #9d988f; --line: #3a3733; --paper: #171614; --accent: #82b4ea } }
body { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; font-variant-numeric: tabular-nums }
h1 { margin: 0; font-size: 2.1rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.2; overflow-wrap: anywhere }
h2 { margin: 3rem 0 1rem; padding-top: .6rem; border-top: 1px solid var(--line); font-size: 1.1rem }
p { margin: .5rem 0 } figure, dd, pre { margin: 0 } .muted, figcaption, dd + dd, th { color: var(--muted) }
dl, .plots, .answers { display: grid; gap: 1.5rem 2rem } dl { grid-template-columns: 1fr 1fr; margin: 2rem 0 0 }
dd { font-size: clamp(1.15rem, 4.4vw, 1.6rem); line-height: 1.4; white-space: nowrap } dd + dd { white-space: normal }
dt, dd + dd, figcaption, table, .small, pre { font-size: .875rem } pre { overflow-x: auto } summary { cursor: pointer }
.plots { grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)) }
.answers { grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)); margin-top: .75rem }
svg { display: block; width: 100%; height: auto; overflow: visible } svg text { font-family: inherit }
details, footer { margin-top: 1rem } .scroll { overflow-x: auto; margin: 1rem 0 } td:first-child { min-width: 9rem }
table { border-collapse: collapse; min-width: 100% } .why { min-width: 14rem; overflow-wrap: anywhere }
th, td { padding: .35rem 1.25rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { font-weight: 400 } .number { text-align: right } .number, .time { white-space: nowrap }
.bar { display: flex; height: .6rem; margin: 1.5rem 0 .5rem; gap: 2px } .prompt { font-weight: 600 }
.trained { background: var(--accent) } .masked { background: var(--muted) } .padding { background: var(--line) }
.dot { display: inline-block; width: .6rem; height: .6rem } .use { display: inline-block; margin-right: 1.25rem }
.sample { margin: 1.75rem 0; padding-left: 1rem; border-left: 2px solid var(--line); break-inside: avoid }
.text { max-height: 16rem; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere }
@media (min-width: 48rem), print { dl { grid-template-columns: repeat(3, 1fr) } }
@media print { :root { --ink: #000; --muted: #555; --line: #bbb; --paper: #fff; --accent: #1d5c9e }
  html { font-size: 11px } body { padding: 0 } figure, tr { break-inside: avoid } h2 { break-after: avoid }
  .bar, .dot { print-color-adjust: exact } .text { max-height: none } }
"""

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ name }} · Shardline</title><style>{{ style }}</style>
{% macro missing(what, verb) %}<p class="muted">{{ what }}: <code>{{ commands[verb] }}</code></p>{% endmacro %}
{% macro plot(key, title, caption) %}
<figure><strong>{{ title }}</strong>{{ plots[key] }}<figcaption>{{ caption }}</figcaption></figure>{% endmacro %}
<h1>{{ name }}</h1><p class="muted">{{ model }}{{ " · " if model }}{{ "never trained" if not plots else "finished" if
  state.is_finished else "step {:,} of {:,}".format(state.step, state.total_steps or 0) }}</p>
{% if figures %}<dl>{% for label, value, remark in figures %}<div>
<dt>{{ label }}</dt><dd>{{ value }}</dd><dd>{{ remark }}</dd></div>{% endfor %}</dl>{% endif %}<h2>Training</h2>
{% if plots %}<div class="plots">
{{ plot("loss", "Loss", "Mean over trained tokens, in nats per token. Thin: each step; bold: running mean."
  ~ (" Dashed: a restart." if state.restarts else "") ~ (" Dotted: held-out loss." if evaluation else "")
  ~ (" Dots: validation " ~ validation ~ "." if validation else "")) }}
{{ plot("rate", "Learning rate", "Warm-up, then the schedule.") }}
{{ plot("norm", "Gradient norm", "Before clipping. A spike: an odd batch; a steady rise: too high a rate.") }}
{{ plot("speed", "Tokens per second", "All ranks together. Below: share of each step spent waiting for data, "
  ~ "%.1f%% over the run." % (100 * (state.lines | sum("data_wait_s")) / (state.kept_s or 1))) }}
</div>{% else %}{{ missing("No step yet", "train") }}{% endif %}
{% if state.attempts %}<h2>Attempts</h2><div class="scroll"><table>
<tr><th>Start (UTC)<th>End<th>Ranks<th class="number">Steps<th class="number">Time<th>Why it ended</tr>
{% for attempt in state.attempts %}{% set start, end = attempt.start, attempt.end %}<tr>
{% for event in (start, end) %}<td class="time">{{ event.time[:19] | replace("T", " ") if event else "—" }}{% endfor %}
<td class="time">{{ start.world_size }} on {{ start.host }}
<td class="number">{{ "{:,} → {}".format(start.step, "{:,}".format(end.step) if end else "?") }}
<td class="number">{{ "" if end else "at least " }}{{ (end.seconds if end else attempt.kept_s) | duration }}
<td class="why">{% if end %}{{ end.reason }} (exit code {{ end.exit_code }}){% else %}{{ "running, or " if loop.last -}}
killed: no end was written; {{ "{:,}".format(attempt.kept_steps) }} of its steps are kept{% endif %}</tr>{% endfor %}
</table></div>{% endif %}
{% if incidents %}<h2>Incidents</h2><p class="muted small">{% if incidents | length > shown %}
{{ "The newest {} of {:,}".format(shown, incidents | length) }}; all are in attempts.jsonl. {% endif %}
The documents of a step: <code>{{ commands.inspect }} --step N</code></p>
<div class="scroll"><table><tr><th>Time (UTC)<th>Step<th>What happened<th>Rows</tr>
{% for incident in incidents[-shown:] %}<tr><td class="time">{{ incident.time[:19] | replace("T", " ") }}
<td class="time">{{ incident.steps_text or "—" }}<td class="why">{{ incident.what }}
<td class="why">{{ incident.rows_text or "—" }}</tr>{% endfor %}</table></div>{% endif %}<h2>Before and after</h2>
{% if evaluation %}<p>{{ "{:,} held-out rows, {:,} tokens scored".format(evaluation.rows, evaluation.trained_tokens) }}.
<div class="scroll"><table><tr><th><th class="number">Base model<th class="number">Tuned model</tr>
{% for key, form, label, remark in [("loss", "{:.4f}", "Loss", "nats per token; lower is better"),
  ("perplexity", "{:,.2f}", "Perplexity", "e to the power of the loss"),
  ("bits_per_byte", "{:.4f}", "Bits per byte", "loss per byte of text: comparable across tokenizers"),
  ("stop_rate", "{:.0%}", "Stop rate", "share of answers that the model ended itself")] %}
{% if evaluation.models.tuned[key] is not none %}<tr><td>{{ label }}<br><span class="muted">{{ remark }}</span>
{% for model in ("base", "tuned") %}<td class="number">{{ form.format(evaluation.models[model][key]) }}{% endfor %}</tr>
{% endif %}{% endfor %}</table></div>
{% for sample in evaluation.samples %}<div class="sample"><div class="text prompt">{{ sample.prompt }}</div>
<div class="answers">
{% for key, title in (("reference", "Reference"), ("base", "Base model"), ("tuned", "Tuned model")) %}
<div><span class="muted small">{{ title }}{{ ", cut off" if sample[key ~ "_stopped"] is false }}</span>
<div class="text">{{ sample[key] }}</div></div>{% endfor %}</div></div>{% endfor %}
{% else %}{{ missing("No evaluation yet", "evaluate") }}{% endif %}<h2>Data</h2>
{% if manifest %}{% set total = manifest.tokens.values() | sum %}<p>{% for split in manifest.splits %}
{{- "{}: {:,} rows".format(split, manifest.rows(split)) }}, {% endfor %}{{ "{:,}".format(manifest.row_tokens) }}
tokens per row.</p>{% if total %}<div class="bar">
{% for use, count in manifest.tokens.items() %}<i class="{{ use }}" style="flex: {{ count }}"></i>{% endfor %}</div>
<p class="small">{% for use, count in manifest.tokens.items() %}
<span class="use"><i class="dot {{ use }}"></i> {{ use }}
{{ "{:.1%} ({})".format(count / total, count | short) }}</span>{% endfor %}
<br><span class="muted">Masked tokens are context without loss; padding fills the ends of rows.</span></p>{% endif %}
{% if manifest.documents %}<div class="scroll"><table>
<tr><th>Source<th class="number">Documents read<th class="number">Kept<th>Rejected</tr>
{% for source, counts in manifest.documents.items() %}<tr><td class="text">{{ source }}
<td class="number">{{ "{:,}".format(counts.read) }}<td class="number">{{ "{:,}".format(counts.kept) }}<td class="why">
{%- for reason, count in counts.rejected | dictsort(by="value", reverse=true) %}{{ reason }} {{ "{:,}".format(count) }}
{{- ", " if not loop.last }}{% else %}—{% endfor %}</tr>{% endfor %}</table></div>{% endif %}
{% else %}<p class="muted">{{ problem }}</p>{% endif %}<h2>Plan and configuration</h2>
{% if plan %}<pre>{{ plan }}</pre>{% else %}{{ missing("No plan yet", "train") }}{% endif %}
{% if config %}<details><summary>Configuration</summary><pre>{{ config }}</pre></details>{% endif %}
<footer class="muted small">Written at {{ written }} with {{ versions | join(", ") }}.</footer></html>
"""
