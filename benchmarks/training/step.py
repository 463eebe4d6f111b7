"""A training step on packed rows: ours, ours with a dense mask and all logits, Trainer with ZeRO-3, plain DDP."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.training.step_work import SHAPES
from cluster.launching.local_launcher import run_ranks

VARIANTS = ("shardline", "shardline as before", "trainer", "ddp")
RANKS, ROUNDS, STEPS, FIRST = 2, 3, 4, 1  # the first steps of a start are not counted
LOSS_TOLERANCE = 2e-3  # a mean of the ranks' means is not the mean over their tokens


def measured(variant: str, shape: str, precision: str, ranks: int) -> dict[str, float]:
    """Run the ranks of a variant once; return the mean of their first losses, and the medians of the slower one."""
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/taken"
        job = [variant, output, shape, precision, str(STEPS + FIRST)]
        if run_ranks([sys.executable, "-m", "benchmarks.training.step_ranks", *job], ranks):
            raise SystemExit(f"{variant}: the ranks failed")
        taken = [json.loads(Path(f"{output}-{rank}.json").read_text()) for rank in range(ranks)]
    return {
        "loss": statistics.mean(rank["losses"][0] for rank in taken),
        "wall_s": max(statistics.median(rank["wall_s"][FIRST:]) for rank in taken),
        "cpu_s": sum(min(rank["cpu_s"][FIRST:]) for rank in taken),
        "peak_mib": max(rank["peak_mib"] for rank in taken),
    }


def compare(variants: Sequence[str], shape: str, precision: str, ranks: int, rounds: int) -> None:
    """Run the variants in turns; print a line for each as soon as its rounds are done, with its ratios to the first."""
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for number in range(rounds):
        for variant, found in runs.items():
            found.append(measured(variant, shape, precision, ranks))
            if number == rounds - 1:
                report(variant, runs, shape, precision, ranks)


def report(variant: str, runs: dict[str, list[dict[str, float]]], shape: str, precision: str, ranks: int) -> None:
    middle, first = (
        {key: statistics.median(run[key] for run in found) for key in found[0]}
        for found in (runs[variant], next(iter(runs.values())))
    )
    same = abs(middle["loss"] / first["loss"] - 1) <= LOSS_TOLERANCE
    line = {
        "case": "step",
        "shape": shape,
        "precision": precision,
        "variant": variant,
        "tokens_per_s": round(ranks * SHAPES[shape].rows * SHAPES[shape].row_tokens / middle["wall_s"]),
        **{key: round(value, 4) for key, value in middle.items()},
        "wall_by_ours": round(middle["wall_s"] / first["wall_s"], 2),
        "cpu_by_ours": round(middle["cpu_s"] / first["cpu_s"], 2),
        "loss_is_ours": same,
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    """Two CPU ranks, two sizes, both precisions."""
    for shape in ("10m", "32m"):
        for precision in ("fp32", "bf16"):
            compare(VARIANTS, shape, precision, RANKS, ROUNDS)
