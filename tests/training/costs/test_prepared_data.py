"""What prepared data says of a token: how long its document is, and whether it has a loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from data_prep.shards import ShardReader, read_manifest
from launch.config import RunConfig
from launch.runs.layouts import prepared_data


def run_of(shards: Path, model: Path, row_tokens: int) -> RunConfig:
    data = {"sources": [{"path": "corpus"}], "folder": shards, "row_tokens": row_tokens}
    return RunConfig.model_validate({"name": "run", "data": data, "model": {"path": str(model)}})


def test_attention_is_counted_by_the_documents_of_the_rows(
    uneven_shards: Callable[[int], Path], tiny_model: Path
) -> None:
    shards = uneven_shards(8)
    manifest = read_manifest(shards)
    found = prepared_data(run_of(shards, tiny_model, manifest.row_tokens), manifest)
    rows = ShardReader(shards, manifest, "train").rows(range(8))
    lengths = [int(length) for row in rows.piece_tokens for length in row]
    seen = sum(length * length for length in lengths)  # each token of a document is a query to, on average, half of it
    assert found.work.context == pytest.approx(seen / sum(lengths))
    assert found.work.trained == pytest.approx(rows.loss_mask.mean())
    assert found.rows == 8


def test_rows_of_another_length_than_the_yaml_says_are_refused(
    uneven_shards: Callable[[int], Path], tiny_model: Path
) -> None:
    shards = uneven_shards(8)
    with pytest.raises(ConfigError, match="prepare"):
        prepared_data(run_of(shards, tiny_model, 8192), read_manifest(shards))
