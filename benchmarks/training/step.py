"""A training step on packed rows: ours, ours with a dense mask and all logits, Trainers with ZeRO-3, plain DDP.

Also what `hooks`, `cpu` and `gpu` have in common: variants in turns, a line of JSON for each, a table at the end.
"""

from __future__ import annotations

import importlib.util
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

from benchmarks.measuring import machine_facts, precisions
from benchmarks.training.step_work import SHAPES
from cluster.errors import EXIT_INTERRUPTED, EXIT_STOPPED
from cluster.launching.local_launcher import run_ranks

VARIANTS = ("shardline", "shardline as before", "trainer", "trl", "ddp")
RANKS, ROUNDS, STEPS, FIRST = 2, 3, 4, 1  # the first steps of a start are not counted
BARS = {"trainer": 1.5, "ddp": 1.4}  # so many times our tokens per second beside theirs
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


def compare(what: Comparison, table: TextIO = sys.stdout) -> dict[str, dict[str, float]]:
    """Run the variants in turns; print a line of JSON for each and write a row of the table as soon as it is measured.

    Returns the least that each variant took, of those whose loss is the first one's.
    A variant that fails, for want of memory for instance, is told and left out; the others go on.
    """
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in what.variants if is_at_hand(variant)}
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
    least = {variant: least_of(found) for variant, found in runs.items() if found}
    return {variant: taken for variant, taken in least.items() if has_loss_of(taken, next(iter(least.values())))}


def least_of(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: min(run[key] for run in found) for key in found[0]}


def has_loss_of(taken: dict[str, float], other: dict[str, float]) -> bool:
    return abs(taken["loss"] / other["loss"] - 1) <= LOSS_TOLERANCE


def judge(case: str, ratio: float | None, bar: float, *, at_most: bool) -> None:
    """Print whether a bar is met; without a ratio, one of the two was not measured, or has another loss."""
    if ratio is None:
        print(f"{case}: nothing to compare")
        return
    met = ratio <= bar if at_most else ratio >= bar
    print(f"{case}: {ratio:.2f}, bar {'<=' if at_most else '>='} {bar:g} {'met' if met else 'NOT met'}", flush=True)


def ratio_of(least: dict[str, dict[str, float]], key: str, above: str, below: str) -> float | None:
    """Return by how much one variant takes more than another; None if either is missing."""
    return least[above][key] / least[below][key] if above in least and below in least else None


def is_at_hand(variant: str) -> bool:
    """Return whether what a variant needs is installed, and tell it if not."""
    found = variant != "trl" or importlib.util.find_spec("trl") is not None
    if not found:
        print("trl: not measured, it is not installed; see benchmarks/training/step_peers.py", flush=True)
    return found


def report(variant: str, runs: dict[str, list[dict[str, float]]], what: Comparison) -> str:
    """Print what a variant took as JSON; return its row of the table."""
    least, first = (least_of(found) for found in (runs[variant], next(found for found in runs.values() if found)))
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
        "loss_is_first's": has_loss_of(least, first),
        **machine_facts(),
    }
    print(json.dumps(line), flush=True)
    times = f"{line['tokens_per_s']:>8} tokens/s  wall {least['wall_s']:.4f} s  CPU {least['cpu_s']:.4f} s"
    ratios = f"{line['wall_by_first']:.2f}  {line['cpu_by_first']:.2f}"
    if not line["loss_is_first's"]:
        ratios = f"VOID: loss {least['loss']:.4f}, not {first['loss']:.4f}"
    place = f"{what.case} {what.shape} {what.precision}"
    return f"{place:<20} {variant:<36} {times}  {ratios}  {least['peak_mib']:.0f} MiB"


def main() -> None:
    """Two CPU ranks, two sizes, both precisions."""
    for shape in ("10m", "32m"):
        for precision in precisions():
            compare_shape(shape, precision)


def compare_shape(shape: str, precision: str, rounds: int = ROUNDS) -> None:
    """Compare the variants on one shape, and judge ours by the peers' wall time."""
    least = compare(Comparison(case="step", variants=VARIANTS, shape=shape, precision=precision, rounds=rounds))
    for peer, bar in BARS.items():
        judge(
            f"step {shape} {precision}, {peer} by ours",
            ratio_of(least, "wall_s", peer, "shardline"),
            bar,
            at_most=False,
        )
