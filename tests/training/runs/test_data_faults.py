"""What becomes of the data between two starts of a run is noticed, and never trained on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.shards import ShardReader, read_manifest
from data_prep.shards.blocks import block_range
from training.checkpoints.layout import newest_checkpoint, step_of
from training.order import Order
from training.reporting.status import status_text
from training.step.batches import Batches

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROWS, STEPS, BATCH = 320, 40, 8  # one epoch: no row comes twice


def row_of_the_second_rank(data: Path, step: int) -> int:
    """Return a row that in a step (from 0) only the second of two ranks reads."""
    manifest = read_manifest(data)
    order = Order(row_count=ROWS, global_batch_rows=BATCH, seed=0, data_digest=manifest.content_digest)
    reader = ShardReader(data, manifest, "train")
    rows = order.rows_of_step(step)
    batches = Batches(reader=reader, order=order, rank=1, world_size=2, micro_batch_rows=2)
    return rows[batches.dealt(rows).of_rank(1)[0].places[0]]


def change_a_byte(data: Path, shard: Path, row: int) -> None:
    """Change a byte in the middle of the block that holds a row, and nothing else."""
    file, within = ShardReader(data, read_manifest(data), "train").shard_of(row)
    content = bytearray(shard.read_bytes())
    content[sum(block_range(file.table, within + 1)) // 2] ^= 1
    shard.write_bytes(content)


def test_a_shard_that_is_missing_cut_a_pipe_or_changed_is_named_and_never_trained_on(
    uneven_shards: Callable[[int], Path], tiny_model: Path, run_in: Callable[..., Any], tmp_path: Path
) -> None:
    data = uneven_shards(ROWS)
    run = run_in(
        tmp_path,
        data={"folder": str(data), "sources": [{"path": "-"}], "row_tokens": 64},
        model={"path": str(tiny_model)},
        train={"steps": STEPS, "global_batch_rows": BATCH, "micro_batch_rows": 2, "save_every_steps": 4},
    )
    run.kill_when(lambda run: (run.paths.checkpoints / "step-000004").exists())
    (shard,) = (data / "train").glob("*.arrow")
    whole, taken = shard.read_bytes(), run.metrics()

    def start_again(says: str) -> None:
        before = run.log.read_text()
        assert run.train() == 2
        said = run.log.read_text().removeprefix(before)
        assert f"{shard}: {says}" in said and "shardline prepare" in said
        assert "Traceback" not in said, said

    shard.unlink()
    start_again("missing")
    os.mkfifo(shard)
    start_again("is a named pipe, not a file")
    shard.unlink()
    shard.write_bytes(whole[:-1])
    start_again(f"{len(whole) - 1} bytes, the manifest says {len(whole)}")
    assert run.metrics() == taken

    shard.write_bytes(whole)
    damaged = step_of(newest_checkpoint(run.paths.checkpoints)) + 3  # from 0
    change_a_byte(data, shard, row_of_the_second_rank(data, damaged))
    start_again("damaged in bytes")
    assert run.steps() == list(range(1, damaged + 1))
    assert f"ended early: DamagedRowsError: {shard}: damaged in bytes" in status_text(run.paths)
