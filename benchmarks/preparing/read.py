"""Rows of prepared data per CPU-second, in random batches of 8: ours, HF with_format('torch'), and numpy's floor."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.english import write_english, write_tokenizer
from benchmarks.peers import ROW_TOKENS, shardline

ROUNDS, BATCH_ROWS = 5, 8


def main() -> None:
    import datasets

    from data_prep.shards import ShardReader, read_manifest

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer")
        write_english(folder / "text.jsonl", 24_000_000)
        shardline(str(folder / "text.jsonl"), str(folder / "tokenizer"), str(folder / "data"))
        reader = ShardReader(folder / "data", read_manifest(folder / "data"), "train")
        split = datasets.load_from_disk(str(folder / "data" / "train")).with_format("torch")
        floor = np.zeros((len(reader), ROW_TOKENS), dtype=np.uint16)
        order = np.random.default_rng(0).permutation(len(reader) // BATCH_ROWS * BATCH_ROWS).reshape(-1, BATCH_ROWS)
        variants: dict[str, tuple[Callable[[list[int]], object], int]] = {
            "shardline": (lambda rows: reader.rows(rows), len(order)),
            "hf_torch": (lambda rows: split[rows], 40),
            "numpy_floor": (lambda rows: floor[rows].astype(np.int64), len(order)),
        }
        rates: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(ROUNDS + 1):
            for variant, (read, batches) in variants.items():
                rates[variant].append(rows_per_cpu_s(read, order[:batches]))
        for variant, values in rates.items():
            median = statistics.median(values[1:])
            print(json.dumps({"case": "read", "variant": variant, "rows_per_cpu_s": round(median)}))


def rows_per_cpu_s(read: Callable[[list[int]], object], order: npt.NDArray[np.int64]) -> float:
    began = time.process_time()
    for rows in order.tolist():
        read(rows)
    return order.size / (time.process_time() - began)
