"""More rows and shards than a process has memory or descriptors for: what is read stays small, and right."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.shards import Manifest, ShardInfo, ShardReader, read_manifest
from data_prep.shards.blocks import write_blocks
from data_prep.shards.reader import OPEN_BLOCKS, OPEN_SHARDS
from data_prep.shards.writing import (
    PackedRows,
    list_others,
    row_schema,
    rows_to_batch,
    write_manifest,
    write_split_files,
)
from training.order import order_of

ROWS, SHARD_ROWS = 10**9, 16_384
SMALL_SHARDS, BLOCKS, BLOCK_ROWS, ROW_TOKENS = 1500, 4, 2, 16
READ_ALL_WITH_FEW_DESCRIPTORS = """
import os, resource, sys
from pathlib import Path
from data_prep.shards import ShardReader, read_manifest
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
folder = Path(sys.argv[1])
reader = ShardReader(folder, read_manifest(folder), "train")
rows = reader.rows(range(len(reader)))
maps = sum(".arrow" in line for line in Path("/proc/self/maps").read_text().splitlines())
print(len(rows.input_ids), maps, len(os.listdir("/proc/self/fd")))
"""


def manifest_of(shards: list[ShardInfo], row_tokens: int) -> Manifest:
    digests = {"config_digest": "", "tokenizer_digest": "", "template_digest": ""}
    values: dict[str, Any] = {"version": 1, "vocab_size": 32_000, **digests}
    counts: dict[str, Any] = {"packing": "concat", "files": [], "documents": {}, "tokens": {}, "conversational": False}
    return Manifest(**values, **counts, row_tokens=row_tokens, splits={"train": shards, "validation": []})


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
    return write_manifest(folder, manifest_of(shards, 2048))


@pytest.mark.slow  # writing it takes seconds
def test_a_manifest_of_a_billion_rows_is_opened_and_gives_the_rows_of_any_step(tmp_path: Path) -> None:
    written = simulated(tmp_path)

    manifest = read_manifest(tmp_path)

    assert manifest.digest == written.digest and manifest.rows("train") == ROWS
    rows = order_of(manifest, 256, seed=1).rows_of_step(3_906_249)  # the last whole step of the first epoch
    assert len(set(rows)) == 256 and max(rows) < ROWS


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of more shards and blocks than a reader keeps open: row r begins with its number in two ids."""
    folder = tmp_path_factory.mktemp("many")
    schema = row_schema(ROW_TOKENS, 32_000)
    shard_rows = BLOCKS * BLOCK_ROWS
    shards = []
    (folder / "train").mkdir()
    for number in range(SMALL_SHARDS):
        relative = f"train/data-{number:05d}-of-{SMALL_SHARDS:05d}.arrow"
        rows = np.arange(number * shard_rows, (number + 1) * shard_rows).reshape(BLOCKS, BLOCK_ROWS)
        batches = [rows_to_batch(block_of_rows(block), schema) for block in rows]
        written = write_blocks(folder / relative, schema, batches)  # unlike write_shard, it does not wait for the disk
        shards.append(ShardInfo(path=relative, tokens=0, **asdict(written)))
    write_split_files(folder / "train", shards, schema, "train")
    write_manifest(folder, replace(manifest_of(shards, ROW_TOKENS), others=list_others(folder)))
    return folder


def block_of_rows(rows: np.ndarray) -> PackedRows:
    ids = np.zeros((len(rows), ROW_TOKENS), np.uint16)
    ids[:, 0], ids[:, 1] = rows % 1000, rows // 1000
    one_segment = np.zeros(len(rows), np.int64)
    return PackedRows(
        input_ids=ids,
        loss_mask=np.arange(ROW_TOKENS) > rows[:, None] % ROW_TOKENS,
        first=np.arange(len(rows) + 1),
        tokens=one_segment + ROW_TOKENS,
        source=one_segment,
        position=rows,
        start=one_segment,
    )


def test_more_shards_than_descriptors_are_read_and_no_more_stay_mapped_than_are_allowed(many_shards: Path) -> None:
    command = [sys.executable, "-c", READ_ALL_WITH_FEW_DESCRIPTORS, str(many_shards)]

    said = subprocess.run(command, capture_output=True, text=True, check=False)

    assert said.returncode == 0, said.stderr
    rows, maps, descriptors = map(int, said.stdout.split())
    assert rows == SMALL_SHARDS * BLOCKS * BLOCK_ROWS
    assert SMALL_SHARDS > OPEN_SHARDS and SMALL_SHARDS * BLOCKS > OPEN_BLOCKS
    assert maps <= OPEN_SHARDS + OPEN_BLOCKS and descriptors < 16


def test_rows_read_by_several_threads_from_shards_that_are_closed_meanwhile_are_the_rows_asked_for(
    many_shards: Path,
) -> None:
    manifest = read_manifest(many_shards)
    reader = ShardReader(many_shards, manifest, "train")
    random = np.random.default_rng(0)
    asked = [random.choice(len(reader), 300) for _ in range(24)]

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(reader.rows, asked))

    for rows, batch in zip(asked, found, strict=True):
        assert (batch.input_ids[:, 0] + 1000 * batch.input_ids[:, 1] == rows).all()
        assert (
            reader.trained_tokens(rows.tolist()) == batch.loss_mask.sum() == (ROW_TOKENS - 1 - rows % ROW_TOKENS).sum()
        )
        assert [lengths.tolist() for lengths in batch.piece_tokens] == [[ROW_TOKENS]] * len(rows)
    assert reader.pieces(int(asked[0][0]))[0].position == asked[0][0]


def test_a_block_is_hashed_once_though_its_shard_was_closed_meanwhile(many_shards: Path) -> None:
    reader = ShardReader(many_shards, read_manifest(many_shards), "train")
    reader.rows(range(len(reader)))

    reader.shard.cache_clear()

    assert len(reader.checked) == SMALL_SHARDS
    for number in (0, SMALL_SHARDS - 1):
        checked = reader.open_shard(number).checked
        assert checked is not None and all(block in checked for block in range(5))


@pytest.mark.parametrize("row", [-1, SMALL_SHARDS * BLOCKS * BLOCK_ROWS])
def test_a_row_that_the_split_does_not_have_is_an_error(many_shards: Path, row: int) -> None:
    reader = ShardReader(many_shards, read_manifest(many_shards), "train")

    for read in (reader.rows, reader.trained_tokens):
        with pytest.raises(IndexError, match=f"rows, rows {min(row, 3)} to {max(row, 3)} were asked for"):
            read([3, row])
