"""English text to packed, checksummed Arrow: ours, and HF datasets', Ray Data's, datatrove's and Megatron-LM's.

Each is a fresh process with one worker, in turns; the CPU is that of the whole process tree, start included. The peers
get a small part of the text, or they would take all day; `per further MB` leaves out what starting costs, by a run on
less. The peers get jsonl, the one format that Megatron-LM reads. How to install them is said in benchmarks/peers.py.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.english import write_english, write_tokenizer
from benchmarks.trees import Usage, run_tree

ROUNDS = 3
OURS, PEERS = (24_000_000, 768_000_000), (2_000_000, 24_000_000)
CASES = {
    ("shardline_light", "jsonl"): OURS,
    ("shardline_light", "parquet"): OURS,
    ("shardline", "jsonl"): OURS,
    **{(name, "jsonl"): PEERS for name in ("hf_datasets", "datatrove", "ray_data", "megatron")},
}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer")
        sizes = {(size, kind) for (_, kind), pair in CASES.items() for size in pair}
        written = {(size, kind): write_english(folder / f"text-{size}.{kind}", size) for size, kind in sorted(sizes)}
        taken: dict[tuple[str, str, int], list[Usage]] = {}
        for turn in range(ROUNDS):
            for (variant, kind), pair in CASES.items():
                for size in pair:
                    output = folder / f"{variant}-{kind}-{size}-{turn}"
                    source, tokenizer = str(folder / f"text-{size}.{kind}"), str(folder / "tokenizer")
                    usage = run_tree(["-m", "benchmarks.peers", variant, source, tokenizer, str(output)])
                    taken.setdefault((variant, kind, size), []).append(usage)
                small, large = ([*taken[variant, kind, size]] for size in pair)
                work = [written[size, kind] for size in pair]
                print(json.dumps(line(variant, kind, small, large, work[0], work[1])), flush=True)


def line(
    variant: str, kind: str, small: list[Usage], large: list[Usage], small_bytes: int, large_bytes: int
) -> dict[str, object]:
    """Return the medians of the runs so far."""
    cpu_small, cpu_large = (statistics.median(usage.cpu_s for usage in usages) for usages in (small, large))
    return {
        "case": "prep",
        "variant": variant,
        "format": kind,
        "runs": len(large),
        "mb": round(large_bytes / 1e6, 1),
        "cpu_s": round(cpu_large, 2),
        "mb_per_cpu_s": round(large_bytes / 1e6 / cpu_large, 2),
        "mb_per_cpu_s_per_further_mb": round((large_bytes - small_bytes) / 1e6 / (cpu_large - cpu_small), 2),
        "wall_s": round(statistics.median(usage.wall_s for usage in large), 2),
        "peak_mb": round(max(usage.peak_mb for usage in large)),
        "peak_one_process_mb": round(max(usage.peak_one_mb for usage in large)),
    }
