from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import DataError
from data_prep.config import DataConfig
from data_prep.fetch.provenance import read_document
from data_prep.preview.row_preview import preview
from data_prep.shards import Manifest, ShardReader


def test_a_preview_marks_what_is_trained_and_where_each_document_begins(
    corpus: Path, config_of: Callable[..., DataConfig], tmp_path: Path
) -> None:
    config = config_of(corpus / "chats.jsonl", row_tokens=256)

    text = preview(config, tmp_path / "data", None, 2, colour=False)

    assert text.count("\nrow ") + text.startswith("row ") == 2
    assert f"── {corpus}/chats.jsonl:" in text
    assert "<|im_start|>assistant\n⟦" in text and "<|im_end|>⟧" in text
    assert "\x1b" not in text and "\x1b[32m" in preview(config, tmp_path / "data", None, 1, colour=True)
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_a_preview_shows_a_pair_as_the_model_meets_it(
    test_data: Path, config_of: Callable[..., DataConfig], lines_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = lines_file({"prompt": "2+2=", "completion": "4"}, {"prompt": "It said", "completion": " \u6f22 or so"})
    tokenizer = {"path": str(test_data / "stories260k")}

    text = preview(
        config_of(path, tokenizer=tokenizer, validation_fraction=0), tmp_path / "data", None, 2, colour=False
    )

    assert "2+2=⟦4</s>⟧" in text and "It said⟦ \u6f22 or so</s>⟧" in text


def test_a_preview_shows_every_source(corpus: Path, config_of: Callable[..., DataConfig], tmp_path: Path) -> None:
    config = config_of(corpus / "books", corpus / "pairs.jsonl", validation_fraction=0.0)

    text = preview(config, tmp_path / "data", None, 1000, colour=False)

    assert "books/00.txt" in text and "pairs.jsonl:1," in text


def test_each_piece_leads_back_to_the_text_it_was_made_of(
    corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = prepared(corpus, slice_bytes=1024, validation_fraction=0.0)
    reader = ShardReader(tmp_path / "data", manifest, "train")
    pieces = [piece for row in range(len(reader)) for piece in reader.pieces(row)]

    found = {(p.source, p.position): read_document(tmp_path / "data", manifest, p.source, p.position) for p in pieces}

    lines = {name: (corpus / name).read_text().splitlines() for name in ("pairs.jsonl", "chats.jsonl")}
    for (source, position), text in found.items():
        path = corpus / manifest.files[source].path
        assert text == (lines[path.name][position] if path.name in lines else path.read_text())
    assert len(found) == 92


def test_a_source_that_changed_or_went_is_said(corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path) -> None:
    manifest = prepared(corpus / "pairs.jsonl")
    path = corpus / "pairs.jsonl"

    path.write_text(path.read_text() + "\n")
    with pytest.raises(DataError, match="changed since the data was prepared"):
        read_document(tmp_path / "data", manifest, 0, 0)

    path.unlink()
    with pytest.raises(DataError, match="not found from"):
        read_document(tmp_path / "data", manifest, 0, 0)
