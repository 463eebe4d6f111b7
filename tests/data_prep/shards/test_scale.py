"""A manifest of 10^9 rows: opened, and step N's rows found, without anything that grows with the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep.shards import Manifest, ShardInfo, read_manifest
from data_prep.shards.writing import write_manifest
from training.order import Order

ROWS, SHARD_ROWS = 10**9, 16_384


def simulated(folder: Path) -> Manifest:
    count = -(-ROWS // SHARD_ROWS)
    shards = [
        ShardInfo(
            path=f"train/data-{n:05d}-of-{count:05d}.arrow",
            rows=min(SHARD_ROWS, ROWS - n * SHARD_ROWS),
            tokens=0,
            trained_tokens=0,
            bytes=0,
            sha256="0" * 64,
            table_sha256="0" * 64,
        )
        for n in range(count)
    ]
    digests: dict[str, Any] = {"config_digest": "", "tokenizer_digest": "", "template_digest": ""}
    counts: dict[str, Any] = {"vocab_size": 32_000, "packing": "concat", "files": [], "documents": {}, "tokens": {}}
    splits = {"train": shards, "validation": []}
    return write_manifest(
        folder, Manifest(version=1, row_tokens=2048, **digests, **counts, splits=splits, conversational=False)
    )


@pytest.mark.slow  # writing it takes seconds
def test_a_manifest_of_a_billion_rows_is_opened_and_gives_the_rows_of_any_step(tmp_path: Path) -> None:
    written = simulated(tmp_path)

    manifest = read_manifest(tmp_path)
    order = Order(row_count=manifest.rows("train"), global_batch_rows=256, seed=1, data_digest=manifest.digest)

    assert manifest.digest == written.digest and manifest.rows("train") == ROWS
    rows = order.rows_of_step(3_906_249)  # the last whole step of the first epoch
    assert len(set(rows)) == 256 and max(rows) < ROWS
