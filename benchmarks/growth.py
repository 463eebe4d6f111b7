"""Time and peak memory of a preparation on 1, 4 and 16 times the text; file operations of more and more ranks."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks import growth_ranks
from benchmarks.english import write_english, write_tokenizer
from benchmarks.trees import run_tree

SIZE = 24_000_000


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer")
        for times in (1, 4, 16):
            source = folder / f"{times}.jsonl"
            size = write_english(source, SIZE * times)
            usage = run_tree(
                [
                    "-m",
                    "benchmarks.peers",
                    "shardline",
                    str(source),
                    str(folder / "tokenizer"),
                    str(folder / f"{times}"),
                ]
            )
            rates = {"cpu_s": round(usage.cpu_s, 2), "mb_per_cpu_s": round(size / 1e6 / usage.cpu_s, 2)}
            print(
                json.dumps(
                    {"case": "growth", "times": times, "mb": size / 1e6, **rates, "peak_mb": round(usage.peak_mb)}
                )
            )
    growth_ranks.main()
