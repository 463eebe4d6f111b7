from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError
from data_prep.config import DataConfig
from data_prep.select.mixture import epochs_of
from data_prep.shards import Manifest, ShardReader


def pieces(folder: Path, manifest: Manifest) -> list[int]:
    reader = ShardReader(folder, manifest, "train")
    return [piece.source for row in range(len(reader)) for piece in reader.pieces(row)]


def test_a_source_with_epochs_is_trained_on_so_often(
    corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    pairs: dict[str, Any] = {"path": str(corpus / "pairs.jsonl"), "epochs": 2.5}
    manifest = prepared(pairs, corpus / "chats.jsonl", validation_fraction=0.0)

    sources = pieces(tmp_path / "data", manifest)

    assert 120 < sources.count(0) < 180  # 60 pairs two and a half times, none of them longer than a row
    entry = manifest.documents[pairs["path"]]
    assert (entry["kept"], entry["epochs"]) == (60, 2.5)
    assert manifest.documents[str(corpus / "chats.jsonl")]["epochs"] == 1


def test_weights_set_the_shares_of_the_tokens_and_no_source_is_seen_more_often_than_its_epochs(
    config_of: Callable[..., DataConfig], corpus: Path
) -> None:
    one, other = (str(corpus / name) for name in ("pairs.jsonl", "chats.jsonl"))
    config = config_of({"path": one, "weight": 1.0}, {"path": other, "weight": 1.0, "epochs": 3.0})

    epochs = epochs_of(config, {one: 1000, other: 500})

    assert epochs == {one: 1.0, other: 2.0}


def test_weights_for_some_sources_only_are_refused(config_of: Callable[..., DataConfig], corpus: Path) -> None:
    config = config_of({"path": str(corpus / "pairs.jsonl"), "weight": 1.0}, corpus / "chats.jsonl")

    with pytest.raises(ConfigError, match=r"chats.jsonl without `weight`.*give all or none"):
        epochs_of(config, {})
