"""What grows with the data and with the ranks: preparing, reading rows of many shards, and what ranks ask of a disk."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks import growth_ranks
from benchmarks.english import write_english, write_tokenizer
from benchmarks.growth_reader import growth_reader
from benchmarks.trees import run_tree

SIZE = 24_000_000


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        growth_prepare(Path(name))
    with tempfile.TemporaryDirectory() as name:
        growth_reader(Path(name))
    growth_ranks.main()


def growth_prepare(folder: Path) -> None:
    """Print time and peak memory of a preparation on 1, 4 and 16 times the text."""
    write_tokenizer(folder / "tokenizer")
    for times in (1, 4, 16):
        source = folder / f"{times}.jsonl"
        size = write_english(source, SIZE * times)
        target = str(folder / f"{times}")
        usage = run_tree(["-m", "benchmarks.peers", "shardline", str(source), str(folder / "tokenizer"), target])
        rates = {"cpu_s": round(usage.cpu_s, 2), "mb_per_cpu_s": round(size / 1e6 / usage.cpu_s, 2)}
        peak = {"peak_mb": round(usage.peak_mb)}
        print(json.dumps({"case": "growth", "times": times, "mb": size / 1e6, **rates, **peak}))
