"""jsonl of English text to packed, checksummed Arrow: ours, HF datasets.map + save_to_disk, Ray Data map_batches.

Each is a fresh process, in turns; the CPU is that of the whole process tree, start included. The peers get an eighth of
the text, or they would take all day; `per further MB` leaves out what starting costs, by a second run on less.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.english import write_english, write_tokenizer
from benchmarks.trees import Usage, run_tree

ROUNDS = 3
SIZES = {
    "shardline": (12_000_000, 96_000_000),
    "hf_datasets": (3_000_000, 12_000_000),
    "ray_data": (3_000_000, 12_000_000),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer")
        sizes = {size for pair in SIZES.values() for size in pair}
        written = {size: write_english(folder / f"{size}.jsonl", size) for size in sorted(sizes)}
        taken: dict[tuple[str, int], list[Usage]] = {}
        for turn in range(ROUNDS):
            for variant, pair in SIZES.items():
                for size in pair:
                    output = folder / f"{variant}-{size}-{turn}"
                    source, tokenizer = str(folder / f"{size}.jsonl"), str(folder / "tokenizer")
                    usage = run_tree(["-m", "benchmarks.peers", variant, source, tokenizer, str(output)])
                    taken.setdefault((variant, size), []).append(usage)
        for variant, (small, large) in SIZES.items():
            print(
                json.dumps(line(variant, taken[variant, small], taken[variant, large], written[small], written[large]))
            )


def line(variant: str, small: list[Usage], large: list[Usage], small_bytes: int, large_bytes: int) -> dict[str, object]:
    cpu_small, cpu_large = (statistics.median(usage.cpu_s for usage in usages) for usages in (small, large))
    return {
        "case": "prep",
        "variant": variant,
        "mb": round(large_bytes / 1e6, 1),
        "cpu_s": round(cpu_large, 2),
        "mb_per_cpu_s": round(large_bytes / 1e6 / cpu_large, 2),
        "mb_per_cpu_s_per_further_mb": round((large_bytes - small_bytes) / 1e6 / (cpu_large - cpu_small), 2),
        "wall_s": round(statistics.median(usage.wall_s for usage in large), 2),
        "peak_mb": round(max(usage.peak_mb for usage in large)),
    }
