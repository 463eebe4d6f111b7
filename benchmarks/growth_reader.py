"""Memory and time of a rank that reads rows at random from 100, 1,000 and 10,000 shards.

Each count is a process of its own, so that its memory is its own. Run with PYTHONPATH of another version, and the
folder of data that this one wrote, `python growth_reader.py FOLDER` measures the reader of that version.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SHARDS = (100, 1_000, 10_000)
SHARD_ROWS, ROW_TOKENS, VOCAB_SIZE = 256, 128, 32_000
GLOBAL_BATCH, RANK_ROWS = 512, 8  # rows of a step, and those of one of 64 ranks
STEPS = 40


def growth_reader(folder: Path) -> None:
    """Write splits of many small shards and print what reading them takes."""
    for count in SHARDS:
        data = folder / str(count)
        write_data(data, count)
        subprocess.run([sys.executable, __file__, str(data)], check=True)


def write_data(folder: Path, count: int) -> None:
    """Write prepared data of so many shards; they are links to one file, since only their number matters."""
    from dataclasses import replace

    from data_prep.shards import Manifest
    from data_prep.shards.writing import (
        PackedRows,
        list_others,
        row_schema,
        write_manifest,
        write_shard,
        write_split_files,
    )

    random = np.random.default_rng(0)
    batches = [
        PackedRows(
            input_ids=random.integers(0, VOCAB_SIZE, (64, ROW_TOKENS)).astype(np.uint16),
            loss_mask=random.random((64, ROW_TOKENS)) < 0.5,
            first=np.arange(65),
            tokens=np.full(64, ROW_TOKENS),
            source=np.zeros(64, np.int64),
            position=np.arange(64),
            start=np.zeros(64, np.int64),
        )
        for _ in range(SHARD_ROWS // 64)
    ]
    names = [f"train/data-{number:05d}-of-{count:05d}.arrow" for number in range(count)]
    schema = row_schema(ROW_TOKENS, VOCAB_SIZE)
    first = write_shard(folder / names[0], names[0], batches, schema)
    for name in names[1:]:
        (folder / name).hardlink_to(folder / names[0])
    shards = [replace(first, path=name) for name in names]
    write_split_files(folder / "train", shards, schema, "train")
    write_manifest(
        folder,
        Manifest(
            version=1,
            config_digest="",
            tokenizer_digest="",
            template_digest="",
            row_tokens=ROW_TOKENS,
            vocab_size=VOCAB_SIZE,
            packing="best_fit",
            files=[],
            splits={"train": shards, "validation": [], "test": []},
            documents={},
            tokens={},
            conversational=False,
            others=list_others(folder),
        ),
    )


def measure(folder: Path) -> dict[str, Any]:
    """Return what reading rows at random takes: the first step, the median of steps, and memory."""
    from data_prep.shards import ShardReader, read_manifest

    manifest = read_manifest(folder)
    before = resident_mb()
    began = time.perf_counter()
    reader = ShardReader(folder, manifest, "train")
    opened = time.perf_counter() - began
    random = np.random.default_rng(1)
    steps = [random.choice(len(reader), GLOBAL_BATCH, replace=False).tolist() for _ in range(STEPS)]
    shares, wholes = [], []
    for step in steps:
        began = time.perf_counter()
        reader.rows(step[:RANK_ROWS])
        reader.trained_tokens(step)
        shares.append(1e3 * (time.perf_counter() - began))
    for step in [*steps, *steps]:
        began = time.perf_counter()
        reader.rows(step)
        wholes.append(1e3 * (time.perf_counter() - began))
    return {
        "case": "growth_reader",
        "shards": len(manifest.splits["train"]),
        "open_reader_ms": round(1e3 * opened, 1),
        "first_step_of_a_rank_ms": round(shares[0], 2),
        "step_of_a_rank_ms": round(statistics.median(shares), 2),
        "all_rows_cold_ms": round(statistics.median(wholes[:STEPS]), 2),
        "all_rows_warm_ms": round(statistics.median(wholes[STEPS:]), 2),
        "memory_mb": round(resident_mb() - before, 1),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
    }


def resident_mb() -> float:
    """Return the memory of this process that is no file's: what a mapped file holds can be taken back at any time."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no RssAnon")


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # versions that keep every shard open need it
    print(json.dumps(measure(Path(sys.argv[1]))))
