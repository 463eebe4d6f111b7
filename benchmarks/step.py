"""A training step on packed rows: ours, ours as it was with a dense mask and all logits, Trainer + ZeRO-3, and DDP."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.step_ranks import ROW_TOKENS, variants
from cluster.local_ranks import run_ranks

RANKS, ROUNDS, STEPS, FIRST = 2, 3, 6, 2  # the first steps of a start are not counted
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


def measured(variant: str, precision: str) -> dict[str, float]:
    """Run the ranks of a variant once; return the mean of their first losses, and the medians of the slower one."""
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/taken"
        command = [sys.executable, "-m", "benchmarks.step_ranks", variant, output, precision, str(STEPS + FIRST)]
        if run_ranks(command, RANKS):
            raise SystemExit(f"{variant}: the ranks failed")
        ranks = [json.loads(Path(f"{output}-{rank}.json").read_text()) for rank in range(RANKS)]
    return {
        "loss": statistics.mean(rank["losses"][0] for rank in ranks),
        "wall_s": max(statistics.median(rank["wall_s"][FIRST:]) for rank in ranks),
        "cpu_s": sum(min(rank["cpu_s"][FIRST:]) for rank in ranks),
        "peak_mib": max(rank["peak_mib"] for rank in ranks),
    }


def main() -> None:
    """Print a line for each variant and precision: the median of the rounds, and ratios to ours."""
    for precision in ("fp32", "bf16"):
        rounds: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants()}
        for _ in range(ROUNDS):
            for variant, found in rounds.items():
                found.append(measured(variant, precision))
        middle = {
            variant: {key: statistics.median(run[key] for run in found) for key in found[0]}
            for variant, found in rounds.items()
        }
        ours = middle["shardline"]
        for variant, taken in middle.items():
            if abs(taken["loss"] / ours["loss"] - 1) > LOSS_TOLERANCE[precision]:
                raise SystemExit(f"{variant}: first loss {taken['loss']}, ours {ours['loss']}: not the same work")
            line = {
                "case": "step",
                "precision": precision,
                "variant": variant,
                "tokens_per_s": round(RANKS * ROW_TOKENS / taken["wall_s"]),
                **{key: round(value, 4) for key, value in taken.items()},
                "ours_by_wall": round(taken["wall_s"] / ours["wall_s"], 2),
                "ours_by_cpu": round(taken["cpu_s"] / ours["cpu_s"], 2),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
