"""An evaluation for people: the table in the terminal, samples.md, and the replies as JSONL for other judges."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import write_text
from cluster.wording import count_of

Format = Callable[[float], str]

FIGURES: Sequence[tuple[str, Sequence[str], Format]] = (
    ("loss, nats per token", ["loss"], "{:.4f}".format),
    ("perplexity", ["perplexity"], "{:,.2f}".format),
    ("bits per byte", ["bits_per_byte"], "{:.4f}".format),
    ("loss, mean of documents", ["document_loss"], "{:.4f}".format),
    ("replies that stop", ["replies", "stop_rate"], "{:.0%}".format),
    ("reply length, tokens", ["replies", "tokens"], "{:.0f}".format),
    ("empty replies", ["replies", "empty_share"], "{:.0%}".format),
    ("repeated runs of 4 tokens", ["replies", "repeated_share"], "{:.0%}".format),
    ("exact match", ["replies", "exact_match"], "{:.0%}".format),
    ("chrF", ["replies", "chrf"], "{:.3f}".format),
    ("ROUGE-L", ["replies", "rouge_l"], "{:.3f}".format),
    ("right labels", ["classification", "accuracy"], "{:.0%}".format),
    ("macro F1 of labels", ["classification", "macro_f1"], "{:.3f}".format),
    ("replies copied from training", ["memorised"], "{:.0f}".format),
)


def as_text(evaluation: Mapping[str, Any]) -> str:
    """Return the comparison as a table for the terminal."""
    models = evaluation["models"]
    head = f"{count_of(evaluation['rows'], 'held-out row')}, {count_of(evaluation['documents'], 'document')}"
    rows = [("", "base", "tuned", "")]
    for label, keys, form in FIGURES:
        base, tuned = (value_at(models[name], keys) for name in ("base", "tuned"))
        if base is not None and tuned is not None:
            rows.append((label, form(base), form(tuned), remark_on(evaluation, keys)))
    lines = [f"{head}, {count_of(evaluation['trained_tokens'], 'token')} scored", *aligned(rows)]
    lines.append(evaluation["difference"]["text"])
    return "\n".join([*lines, *warnings(evaluation)])


def value_at(values: Any, keys: Sequence[str]) -> float | None:
    """Return the number under these keys; None if there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return None if values is None else float(values)


def remark_on(evaluation: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return what a figure is to be compared with, besides the other model's."""
    if keys[-1] == "tokens":
        return f"reference {evaluation['models']['tuned']['replies']['reference_tokens']:.0f}"
    if keys[0] == "classification":
        majority = evaluation["classification"]["majority"]
        value = majority[keys[-1]]
        shown = f"{value:.0%}" if keys[-1] == "accuracy" else f"{value:.3f}"
        return f"always {majority['label']!r}: {shown}"
    return ""


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows of a label, numbers and a remark in columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for label, *numbers, remark in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([label.ljust(widths[0]), *cells, remark]).rstrip())
    return lines


def warnings(evaluation: Mapping[str, Any]) -> list[str]:
    """Return what a reader of the figures must know, a line each."""
    lines = []
    change, samples = evaluation["difference"], evaluation["samples"]
    if change["unchanged"] == change["documents"]:
        lines.append("warning: both models have the very same losses: the export has nothing of the training")
    cut = sum(sample["cut"] for sample in samples)
    if cut and evaluation["models"]["tuned"]["stop_rate"] is not None:  # texts have no reference to match
        lines.append(
            f"note: {cut} of {len(samples)} references are longer than evaluate.sample_tokens, so replies end before "
            "they can match; raise it"
        )
    copied = [sample["memorised"] for sample in samples if sample["memorised"] is not None]
    if copied:
        lines.append(f"warning: replies repeat 50 tokens or more of training rows {', '.join(map(str, copied[:5]))}")
    if evaluation.get("verdict"):
        lines.append(evaluation["verdict"]["text"])
    return lines


def task_table(tasks: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return the results of lm-evaluation-harness as lines; ± is its standard error."""
    rows = [("task", "base", "tuned", "")]
    for task, metrics in tasks.items():
        for metric, found in metrics.items():
            base, tuned = (with_error(found.get(name), found.get(f"stderr_{name}")) for name in ("base", "tuned"))
            rows.append((f"{task} {metric}", base, tuned, ""))
    return aligned(rows)


def with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def write_samples(evaluation: Mapping[str, Any], markdown: Path, lines: Path) -> None:
    """Write the replies side by side, to read, and as JSONL, for any judge."""
    parts = ["# Replies to held-out prompts", *(sample_text(n, s) for n, s in enumerate(evaluation["samples"], 1))]
    write_text(markdown, "\n\n".join(parts) + "\n")
    write_text(lines, "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in evaluation["samples"]))


def sample_text(number: int, sample: Mapping[str, Any]) -> str:
    """Return one sample as Markdown."""
    parts = [f"## {number}"]
    for key, title in (("prompt", "Prompt"), ("reference", "Reference"), ("base", "Base"), ("tuned", "Tuned")):
        note = " (cut off)" if sample.get(f"{key}_stopped") is False else ""
        parts.append(f"**{title}**{note}\n\n{quoted(sample[key])}")
    return "\n\n".join(parts)


def quoted(text: str) -> str:
    """Return a text as a block that shows it as it is, whatever Markdown is in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text or '(empty)'}\n{fence}"
