"""How full rows of 2,048 tokens are on real text; no token is lost, which `prepare` itself checks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.shards import Manifest

ROW = {"row_tokens": 2048, "packing": "best_fit", "workers": 1, "validation_fraction": 0.0}
TRAINED = {"train": {"vocab_size": 8192}}


def no_token_is_lost(manifest: Manifest) -> bool:
    told = sum(int(e["tokens"]) for e in manifest.documents.values())
    return manifest.tokens["trained"] + manifest.tokens["masked"] == told


def dialogues(test_data: Path, path: Path) -> None:
    """Write the self-dialogues as conversations: the two voices in turn."""
    with path.open("w", encoding="utf-8") as stream:
        for source in sorted((test_data / "self_dialogue").glob("*.csv")):
            for row in csv.DictReader(source.read_text(encoding="utf-8", errors="replace").splitlines()):
                said = [row[name] for name in sorted(row, key=number_of) if "sentence" in name.lower() and row[name]]
                turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
                if len(turns) > 1:
                    stream.write(json.dumps({"messages": turns}) + "\n")


def number_of(name: str) -> int:
    return int("".join(c for c in name if c.isdigit()) or 0)


@pytest.mark.slow
def test_rows_of_dialogues_are_full(test_data: Path, prepared: Callable[..., Manifest], tmp_path: Path) -> None:
    dialogues(test_data, tmp_path / "chats.jsonl")

    manifest = prepared(tmp_path / "chats.jsonl", **ROW, tokenizer=TRAINED)

    assert manifest.fill["train"] >= 0.993
    assert no_token_is_lost(manifest)


@pytest.mark.slow
def test_rows_of_instructions_are_full(test_data: Path, prepared: Callable[..., Manifest]) -> None:
    manifest = prepared(test_data / "gsm8k" / "train.jsonl", **ROW, tokenizer=TRAINED)

    assert manifest.fill["train"] >= 0.993
    assert no_token_is_lost(manifest)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["books", "peps"])
def test_rows_of_long_documents_are_full(test_data: Path, prepared: Callable[..., Manifest], source: str) -> None:
    manifest = prepared(test_data / source, **ROW, tokenizer=TRAINED)

    assert manifest.fill["train"] >= 0.995
    assert no_token_is_lost(manifest)
