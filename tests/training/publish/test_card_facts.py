"""The data table of a card names sources so that others know them, and tells nothing else of where they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.paths import RunPaths
from training.publish.card_facts import datasets_of, smaller_text, source_of
from training.publish.subject import Run

COUNTS = {"kept": 1200, "tokens": 34000, "trained_tokens": 900}
NAMES: list[tuple[dict[str, Any], str, str]] = [
    ({"path": "/home/zoe/secret/rows.jsonl"}, "/home/zoe/secret/rows.jsonl", "`rows.jsonl`"),
    ({"path": "runs/a/b*.jsonl"}, "runs/a/b*.jsonl", "`b*.jsonl`"),
    ({"name": "letters", "path": "/x/y"}, "letters", "`letters`"),
    ({"url": "https://u:p@a.org/b.jsonl?sig=1"}, "https://u:p@a.org/b.jsonl?sig=1", "`https://a.org/b.jsonl`"),
    ({"dataset": "o/n@main"}, "o/n@main", "[o/n](https://huggingface.co/datasets/o/n)"),
    ({"name": "qa", "dataset": "o/n"}, "qa", "`qa`: [o/n](https://huggingface.co/datasets/o/n)"),
]


def run_with(*sources: dict[str, Any]) -> Run:
    return Run(name="tiny", paths=RunPaths(Path("run")), shards=Path("shards"), sources=sources, base=None)


@pytest.mark.parametrize(("source", "label", "told"), NAMES, ids=[label for _, label, _ in NAMES])
def test_a_source_is_named_without_what_is_private(source: dict[str, Any], label: str, told: str) -> None:
    found = source_of(label, COUNTS, run_with(source))
    assert (found.name, found.license) == (told, "unknown")
    assert (found.documents, found.tokens, found.trained) == ("1,200", "34,000", "900")


def test_the_licence_is_the_one_of_the_source_with_that_label() -> None:
    run = run_with({"path": "a", "license": "mit"}, {"dataset": "o/n", "license": "cc0-1.0"}, {"dataset": "o/n@v2"})
    assert [source_of(label, COUNTS, run).license for label in ("o/n", "a", "gone")] == ["cc0-1.0", "mit", "unknown"]
    assert datasets_of(run) == ["o/n"]


def test_a_smaller_form_is_told_with_what_it_cost() -> None:
    int8 = {"kind": "int8", "bits": 8, "quantized_share": 0.87, "loss": {"before": 3.0683, "after": 3.0676}}
    assert smaller_text(None) == ""
    assert "GGUF (q8_0)" in smaller_text({"kind": "gguf-q8_0", "type": "q8_0"})
    assert smaller_text(int8).startswith(
        "87% of its weights are rounded to 8-bit integers: the held-out loss was 3.0683"
    )
    assert smaller_text({**int8, "loss": None}).endswith("integers.")
