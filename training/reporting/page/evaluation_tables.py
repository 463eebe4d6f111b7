"""The figures of an evaluation as tables, those that this version does not know included."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

BOTH = ("base", "tuned")
KNOWN: Mapping[str, tuple[str, str, str]] = {  # label, remark, form
    "loss": ("Loss", "nats per token; lower is better", "{:.4f}"),
    "perplexity": ("Perplexity", "e to the power of the loss; lower is better", "{:,.2f}"),
    "bits_per_byte": ("Bits per byte", "loss per byte of text: comparable across tokenizers", "{:.4f}"),
    "stop_rate": ("Stop rate", "share of answers that the model ended itself", "{:.0%}"),
    "exact_match": ("Exact match", "share of answers equal to the reference", "{:.1%}"),
    "accuracy": ("Accuracy", "labels chosen by likelihood: share that is right", "{:.1%}"),
    "empty_share": ("Empty answers", "share of answers without text", "{:.1%}"),
    "repeated_share": ("Repetition", "share of the runs of 4 tokens that the answer had before", "{:.1%}"),
    "document_loss": ("Loss by document", "mean of the documents' losses, each counted once", "{:.4f}"),
    "replies": ("Replies", "how many answers the figures below are of", "{:,}"),
    "tokens": ("Length of answers", "tokens, mean", "{:.1f}"),
    "reference_tokens": ("Length of references", "tokens, mean", "{:.1f}"),
    "macro_f1": ("Macro F1", "labels chosen by likelihood; mean over the labels", "{:.4g}"),
    "memorised": ("Memorised", "answers that repeat 50 tokens of the training split", "{:,}"),
    "chrf": ("chrF", "overlap of character n-grams with the reference; higher is better", "{:.3f}"),
    "rouge_l": ("ROUGE-L", "longest common subsequence with the reference; higher is better", "{:.3f}"),
    "f1": ("F1", "mean of precision and recall; higher is better", "{:.4g}"),
}
TOLD = {"models", "samples", "export", "difference", "verdict"}  # shown elsewhere, or not a figure
LEFT_OUT = {"path", "replies.stop_rate"}  # the latter is `stop_rate` again
TITLES = {"data": "Probes of the data and the replies", "classification": "Labels of the held-out documents"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure: its label, what it means, and its values, the base model's first."""

    label: str
    remark: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures under one title; `is_pair` if each has a value for the base and for the tuned model."""

    title: str
    is_pair: bool
    rows: list[Row]


def tables(evaluation: Mapping[str, Any]) -> list[Table]:
    """Return the scores of both models, then whatever else the evaluation holds, such as benchmark tasks."""
    models = evaluation["models"]
    found = [Table(title="", is_pair=True, rows=list(pair_rows(models["base"], models["tuned"])))]
    for name, value in evaluation.items():
        if name in TOLD or not isinstance(value, Mapping):
            continue
        pairs, others = list(scores_in_pairs(value)), list(single_rows(value))
        found += [Table(title=humanized(name), is_pair=True, rows=pairs)] * bool(pairs)
        found += [Table(title=TITLES.get(name, humanized(name)), is_pair=False, rows=others)] * bool(others)
    return [table for table in found if table.rows]


def pair_rows(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row for each figure that either model has."""
    left, right = dict(flat(base)), dict(flat(tuned))
    for key in dict.fromkeys([*left, *right]):
        if key in LEFT_OUT or (left.get(key) is None and right.get(key) is None):
            continue
        label, remark, _ = KNOWN.get(key.rpartition(".")[2], (humanized(key), "", ""))
        yield Row(label=label, remark=remark, values=(text(key, left.get(key)), text(key, right.get(key))))


def scores_in_pairs(values: Mapping[str, Any], prefix: str = "") -> Iterator[Row]:
    """Yield a row for each object with a figure for either model, as the tasks of the evaluation harness have."""
    for key, value in values.items():
        if not isinstance(value, Mapping):
            continue
        name = f"{prefix}{key}"
        if is_pair(value):
            yield Row(label=name, remark="", values=tuple(with_error(value, model) for model in BOTH))
        else:
            yield from scores_in_pairs(value, f"{name}, ")


def is_pair(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(value.get(model), float | int) for model in BOTH)


def with_error(value: Mapping[str, Any], model: str) -> str:
    """Return a model's figure with its standard error, if there is one."""
    error = value.get(f"stderr_{model}")
    more = f" ± {text('', error)}" if isinstance(error, float | int) else ""
    return text("", value.get(model)) + more


def single_rows(values: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row for each figure that is of no model."""
    for key, value in values.items():
        if is_pair(value):
            continue
        if isinstance(value, Mapping):
            for row in single_rows(value):
                yield Row(
                    label=f"{humanized(str(key))}: {row.label[:1].lower()}{row.label[1:]}", remark="", values=row.values
                )
        elif not isinstance(value, list):
            yield Row(label=humanized(str(key)), remark="", values=(text(str(key), value),))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the figures of nested objects under dotted names. Lists are left out: they are no figures."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        elif not isinstance(value, list):
            yield name, value


def text(key: str, value: Any) -> str:
    """Return a figure as text, in the form of its kind."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    form = KNOWN.get(key.rpartition(".")[2], ("", "", ""))[2]
    if form.endswith("%}") and not 0 <= value <= 1:
        form = ""
    return (form or "{:.4g}").format(value)


def humanized(key: str) -> str:
    """Return a key's name as a label: "stop_rate" as "Stop rate"."""
    words = key.replace("_", " ").replace(".", ": ").strip()
    return words[:1].upper() + words[1:]
