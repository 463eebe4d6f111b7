"""The tables of a model card: what was trained on which data, and how it scored."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from cluster.wording import count_of
from training.publish.private_text import scrub
from training.publish.subject import Run, Subject
from training.reporting.page.evaluation_tables import Table, scores_in_pairs, tables
from training.reporting.page.facts import batch_text, method_text, parameters_text, rate_text, validation_figures
from training.reporting.page.hardware import device_of
from training.reporting.plots import smoothed
from training.reporting.run_state import RunState, read_record
from training.reporting.wording import duration, short

UNKNOWN = "unknown"
DATASET = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of the data as the card shows it."""

    name: str
    license: str
    documents: str
    tokens: str
    trained: str


def sources_of(subject: Subject) -> list[Source]:
    """Return the sources in the manifest's order, with the licences that the configuration gives."""
    if subject.run is None or subject.manifest is None:
        return []
    return [source_of(label, counts, subject.run) for label, counts in subject.manifest.documents.items()]


def source_of(label: str, counts: Mapping[str, Any], run: Run) -> Source:
    found = next((source for source in run.sources if label_of(source) == label), {})
    return Source(
        name=told_name(label, found),
        license=found.get("license") or UNKNOWN,
        documents=f"{counts.get('kept', 0):,}",
        tokens=f"{counts.get('tokens', 0):,}",
        trained=f"{counts.get('trained_tokens', 0):,}",
    )


def label_of(source: Mapping[str, Any]) -> str:
    """Return the name of a source in the manifest, as `SourceConfig.label` gives it."""
    return str(next((source[key] for key in ("name", "path", "url", "dataset") if source.get(key)), ""))


def told_name(label: str, source: Mapping[str, Any]) -> str:
    """Return a source's name for others: a dataset with its link, a local file without its folders."""
    if dataset := dataset_of(source):
        link = f"[{dataset}](https://huggingface.co/datasets/{dataset})"
        return link if label.startswith(dataset) else f"{as_code(scrub(label))}: {link}"
    is_path = source.get("path") == label or (not source and "://" not in label and "/" in label)
    return as_code(Path(label).name if is_path else scrub(label))


def as_code(name: str) -> str:
    """Return a name that Markdown shows as it is, whatever is in it."""
    return f"`{name.replace('`', '')}`"


def dataset_of(source: Mapping[str, Any]) -> str | None:
    """Return the id of a Hub dataset, without its revision."""
    dataset = str(source.get("dataset") or "").partition("@")[0]
    return dataset if DATASET.fullmatch(dataset) else None


def training_rows(subject: Subject) -> list[tuple[str, str]]:
    """Return how the model was trained, as label and text; nothing without the run's metrics."""
    state = subject.state
    if subject.run is None or state is None:
        return []
    plan = read_record(subject.run.paths.plan)
    rows = [
        ("Parameters", parameters_text(plan)),
        ("Method", method_text(subject.configuration.get("train") or {}, plan)),
        ("Batch", batch_text(plan)),
        ("Learning rate", rate_text(plan)),
        ("Steps", f"{subject.record.step:,} of {state.total_steps or subject.record.step:,}"),
        *run_rows(state),
    ]
    return [(name, text) for name, text in rows if text]


def run_rows(state: RunState) -> list[tuple[str, str]]:
    """Return what the run's metrics say."""
    losses = [line["loss"] for line in state.lines]
    first, last = losses[0], smoothed(losses)[-1]
    start = state.attempts[-1].start if state.attempts else {}
    ranks = count_of(start["world_size"], "rank") if start.get("world_size") else ""
    return [
        ("Tokens trained", f"{short(sum(line['trained_tokens'] for line in state.lines))}, each pass counted"),
        ("Training loss", f"{first:.3f} at the first step, {last:.3f} at the end (running mean)"),
        *((name, f"{value} ({remark})") for name, value, remark in validation_figures(state.validation)),
        ("Time in steps", duration(math.fsum(line["step_s"] for line in state.lines))),
        ("Hardware", " on ".join(filter(None, [ranks, device_of(state)]))),
    ]


def evaluation_tables(subject: Subject) -> list[Table]:
    """Return the scores of the base model beside this one's, benchmark tasks included."""
    return [table for table in tables(subject.evaluation) if table.is_pair] if subject.evaluation else []


def evaluated_text(evaluation: Mapping[str, Any]) -> str:
    """Return what the evaluation was of, and how sure its difference is."""
    rows, documents = count_of(evaluation.get("rows", 0), "row"), count_of(evaluation.get("documents", 0), "document")
    found = f"On {rows} with {documents} that were held out of the training."
    change = (evaluation.get("difference") or {}).get("text")
    return f"{found} By document, {change}." if change else found


def results_of(subject: Subject) -> list[EvalResult] | None:
    """Return this model's scores for the card's metadata; None without an evaluation."""
    if subject.run is None or subject.evaluation is None:
        return None
    tuned = subject.evaluation["models"]["tuned"]
    held_out: dict[str, Any] = {
        "dataset_name": f"held-out rows of {subject.run.name}",
        "dataset_type": subject.run.name,
    }
    found = [
        EvalResult(task_type="text-generation", metric_type=key, metric_value=round(tuned[key], 6), **held_out)
        for key in ("loss", "perplexity")
        if is_number(tuned.get(key))
    ]
    for row in scores_in_pairs(subject.evaluation.get("tasks") or {}):
        task, _, metric = row.label.rpartition(", ")
        score = row.values[1].partition(" ")[0]
        if task and re.fullmatch(r"-?[\d.]+(e-?\d+)?", score):
            names: dict[str, Any] = {"dataset_name": task, "dataset_type": task}
            found.append(
                EvalResult(task_type="text-generation", metric_type=metric, metric_value=float(score), **names)
            )
    return found or None


def smaller_text(made: Mapping[str, Any] | None) -> str:
    """Return how the files were made from the export of the checkpoint, and what that cost; empty if they are it."""
    if made is None:
        return ""
    if "bits" not in made:
        return f"Converted to GGUF ({made['type']}) by llama.cpp."
    found = f"{made['quantized_share']:.0%} of its weights are rounded to {made['bits']}-bit integers"
    loss = made.get("loss") or {}
    if is_number(loss.get("before")) and is_number(loss.get("after")):
        found += f": the held-out loss was {loss['before']:.4f} before and is {loss['after']:.4f}"
    return f"{found}."


def is_number(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)


def datasets_of(run: Run | None) -> list[str] | None:
    """Return the ids of the Hub datasets among the sources."""
    found: Sequence[str] = [dataset for source in (run.sources if run else []) if (dataset := dataset_of(source))]
    return list(dict.fromkeys(found)) or None
