"""A training step on packed rows: ours, ours with a dense mask and all logits, Trainer with ZeRO-3, plain DDP.

Also what `hooks`, `cpu` and `gpu` have in common: variants in turns, a line of JSON for each, a table at the end.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from benchmarks.measuring import machine_facts
from benchmarks.training.step_work import SHAPES
from cluster.errors import EXIT_INTERRUPTED, EXIT_STOPPED
from cluster.launching.local_launcher import run_ranks

VARIANTS = ("shardline", "shardline as before", "trainer", "ddp")
RANKS, ROUNDS, STEPS, FIRST = 2, 3, 4, 1  # the first steps of a start are not counted
LOSS_TOLERANCE = 2e-3  # a mean of the ranks' means is not the mean over their tokens


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is measured: `variants` of step_ranks, each started `rounds` times, in turns."""

    case: str
    variants: Sequence[str]
    shape: str
    precision: str
    ranks: int = RANKS
    rounds: int = ROUNDS
    steps: int = STEPS
    until: float = math.inf
    """By time.monotonic(): no start after it."""


def measured(variant: str, what: Comparison) -> dict[str, float]:
    """Run the ranks of a variant once; return the mean of their first losses, and the medians of the slower one."""
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/taken"
        job = [variant, output, what.shape, what.precision, str(what.steps + FIRST)]
        workspace = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if variant == "shardline, deterministic" else {}
        command = [sys.executable, "-m", "benchmarks.training.step_ranks", *job]
        code = run_ranks(command, what.ranks, workspace)
        if code in (EXIT_STOPPED, EXIT_INTERRUPTED):  # somebody wants all of it to end, not this variant
            raise SystemExit(code)
        if code:
            raise RuntimeError(f"{variant}: the ranks failed")
        taken = [json.loads(Path(f"{output}-{rank}.json").read_text()) for rank in range(what.ranks)]
    return {
        "loss": statistics.mean(rank["losses"][0] for rank in taken),
        "wall_s": max(statistics.median(rank["wall_s"][FIRST:]) for rank in taken),
        "cpu_s": sum(min(rank["cpu_s"][FIRST:]) for rank in taken),
        "peak_mib": max(rank["peak_mib"] for rank in taken),
    }


def compare(what: Comparison, table: TextIO = sys.stdout) -> None:
    """Run the variants in turns; print a line of JSON for each and write a row of the table as soon as it is measured.

    A variant that fails, for want of memory for instance, is told and left out; the others go on.
    """
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in what.variants}
    rows: list[str] = []
    for number in range(what.rounds):
        for variant, found in runs.items():
            if time.monotonic() > what.until:
                print(f"{what.case} {what.shape} {variant}: not measured, the time is over", file=table, flush=True)
                continue
            try:
                found.append(measured(variant, what))
            except RuntimeError as error:
                print(json.dumps({"case": what.case, "variant": variant, "failed": str(error)}), flush=True)
            if number == what.rounds - 1:
                rows.append(report(variant, runs, what) if found else f"{variant:<36} failed")
                if table is not sys.stdout:
                    print(rows[-1], file=table, flush=True)
    print("\n".join(rows), flush=True)


def report(variant: str, runs: dict[str, list[dict[str, float]]], what: Comparison) -> str:
    """Print what a variant took as JSON; return its row of the table."""
    least, first = (
        {key: min(run[key] for run in found) for key in found[0]}
        for found in (runs[variant], next(found for found in runs.values() if found))
    )
    shape = SHAPES[what.shape]
    line = {
        "case": what.case,
        "shape": what.shape,
        "precision": what.precision,
        "variant": variant,
        "tokens_per_s": round(what.ranks * shape.rows * shape.row_tokens / least["wall_s"]),
        **{key: round(value, 4) for key, value in least.items()},
        "wall_by_first": round(least["wall_s"] / first["wall_s"], 2),
        "cpu_by_first": round(least["cpu_s"] / first["cpu_s"], 2),
        "loss_is_first's": abs(least["loss"] / first["loss"] - 1) <= LOSS_TOLERANCE,
        **machine_facts(),
    }
    print(json.dumps(line), flush=True)
    times = f"{line['tokens_per_s']:>8} tokens/s  wall {least['wall_s']:.4f} s  CPU {least['cpu_s']:.4f} s"
    ratios = f"{line['wall_by_first']:.2f}  {line['cpu_by_first']:.2f}"
    void = "" if line["loss_is_first's"] else "  VOID: another loss"
    place = f"{what.case} {what.shape} {what.precision}"
    return f"{place:<20} {variant:<36} {times}  {ratios}  {least['peak_mib']:.0f} MiB{void}"


def main() -> None:
    """Two CPU ranks, two sizes, both precisions."""
    for shape in ("10m", "32m"):
        for precision in ("fp32", "bf16"):
            compare(Comparison(case="step", variants=VARIANTS, shape=shape, precision=precision))
