"""What many GPUs lose to saves and failures: simulated beside expected, and what would lose less than 0.6 %.

Writes docs/images/goodput.svg. Nothing here is measured on a cluster: failures are drawn with Llama 3's rate, and the
times of saves and restarts are those of training/costs/saving.py for Llama 3.1 405B on nodes of 8 H200.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.goodput.picture import Curve, picture
from benchmarks.goodput.simulation import Fleet, Goodput, simulated
from training.costs.gpus import KINDS, Cluster
from training.costs.saving import STORAGE, Saving, saving_of
from training.costs.shapes import ModelShape, shape_of_config

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "scale" / "llama-3.1-405b" / "config.json"
GPUS = (128, 512, 2048, 8192, 16384, 32768, 131072)
GOAL = 0.006
MOST_STORAGE = 1e12  # bytes/s of a shared file system, however many nodes: Llama 3's sustained 2 TB/s
HOT_RESTART_S = 40.0  # a spare node that takes over with everything loaded: DeadPool (arXiv 2607.01646), 512 A100


def main() -> None:
    """Print a line of JSON for each case, then the tables, and write the picture."""
    shape = shape_of_config(json.loads(MODEL.read_text(encoding="utf-8")))
    assert shape is not None
    curves = [curve_of(name, [saving for _, saving in cases]) for name, cases in by_name(shape).items()]
    (ROOT / "docs" / "images" / "goodput.svg").write_text(picture(curves, GOAL * 100), encoding="utf-8")
    print("\nlost to saves and failures, in per cent of the time: expected (simulated)")
    print(f"{'GPUs':>9} {'one failure in':>15}" + "".join(f"{curve.name[:30]:>32}" for curve in curves))
    for number, gpus in enumerate(GPUS):
        seen = "".join(f"{f'{c.expected[number]:.3f} ({c.simulated[number]:.3f})':>32}" for c in curves)
        print(f"{gpus:>9,} {saving_at(shape, gpus).failure_s / 3600:>13.1f} h{seen}")
    for gpus in (4096, 16384, 65536):
        print(f"\n{gpus:,} GPUs, asynchronous saves: what changes what is lost")
        for line in levers(saving_at(shape, gpus)):
            print(line)
    print("\nspare nodes on 16,384 GPUs, each failed node away for a day")
    for line in spares(saving_at(shape, 16384)):
        print(line)


def saving_at(shape: ModelShape, gpus: int) -> Saving:
    """Return the times on so many H200."""
    nodes = gpus // 8
    cluster = Cluster(kind=KINDS["h200"], nodes=nodes, gpus_per_node=8, network_gbit=3200)
    return saving_of(shape, cluster, min(STORAGE, MOST_STORAGE / nodes))


def by_name(shape: ModelShape) -> dict[str, list[tuple[int, Saving]]]:
    """Return the savings of each curve by number of GPUs."""
    asynchronous = [(gpus, saving_at(shape, gpus)) for gpus in GPUS]
    return {
        "saves that training waits for": [(gpus, waiting(saving)) for gpus, saving in asynchronous],
        "asynchronous saves": asynchronous,
        "and hot spares": [(gpus, saving.without(restart_s=HOT_RESTART_S)) for gpus, saving in asynchronous],
    }


def waiting(saving: Saving) -> Saving:
    """Return the same with training waiting until files are written."""
    return saving.without(stall_s=saving.stall_s + saving.write_s, write_s=0.0)


def curve_of(name: str, savings: list[Saving]) -> Curve:
    """Simulate each number of GPUs, print it, and return the curve in per cent."""
    found = []
    for gpus, saving in zip(GPUS, savings, strict=True):
        found.append(simulated(saving, saving.best_interval_s, Fleet()))
        print(json.dumps(record(name, gpus, saving, found[-1])))
    return Curve(
        name=name,
        gpus=GPUS,
        expected=[100 * (1 - saving.goodput()) for saving in savings],
        simulated=[100 * one.lost for one in found],
    )


def record(name: str, gpus: int, saving: Saving, found: Goodput) -> dict[str, object]:
    return {
        "case": name,
        "gpus": gpus,
        "stall_s": round(saving.stall_s, 3),
        "write_s": round(saving.write_s, 1),
        "restart_s": round(saving.restart_s, 1),
        "interval_s": round(saving.best_interval_s, 1),
        "failures": found.failures,
        "lost": round(found.lost, 6),
        "standard_error": round(found.error, 6),
        "expected": round(1 - saving.goodput(), 6),
    }


def levers(saving: Saving) -> Iterator[str]:
    """Yield what is lost as things are, with each thing changed alone, and with all of them."""
    changes: dict[str, dict[str, float]] = {
        "as it is": {},
        "stall of a save 0.1 s": {"stall_s": 0.1},
        f"restart in {HOT_RESTART_S:.0f} s": {"restart_s": HOT_RESTART_S},
        "restart in 10 s": {"restart_s": 10.0},
        "files written in a tenth of the time": {"write_s": saving.write_s / 10},
        "a failure half as often": {"failure_s": 2 * saving.failure_s},
    }
    every: dict[str, float] = {"stall_s": 0.1, "restart_s": 10.0, "write_s": saving.write_s / 10}
    changes["stall, restart in 10 s and files together"] = every
    for name, change in changes.items():
        yield told(name, saving.without(**change))
    yield f"  less than {GOAL:.1%}: {enough(saving)}"


def told(name: str, saving: Saving) -> str:
    lost = 1 - saving.goodput()
    return f"  {name:<44} {lost:>7.2%} lost, a save every {saving.best_interval_s:>6,.0f} s"


def enough(saving: Saving) -> str:
    """Return what reaches the goal: a fast restart, with short stalls and quick files, or rarer failures."""
    if 1 - saving.goodput() <= GOAL:
        return "reached as it is"
    quick = saving.without(stall_s=0.1, write_s=min(saving.write_s, 1.0))
    restarts = [s for s in range(1, 300) if 1 - quick.without(restart_s=float(s)).goodput() <= GOAL]
    rarer = next(n for n in range(1, 1000) if 1 - saving.without(failure_s=n * saving.failure_s).goodput() <= GOAL)
    fast = (
        f"a restart in {restarts[-1]} s, stalls of 0.1 s and files in 1 s" if restarts else "no restart is fast enough"
    )
    return f"{fast}; or, with nothing else changed, failures {rarer} times as rare"


def spares(saving: Saving) -> Iterator[str]:
    """Yield what is lost with so many spare nodes."""
    expected = 86_400 / saving.failure_s
    for count in (0, round(expected), round(1.5 * expected), round(2 * expected), round(3 * expected)):
        found = simulated(saving, saving.best_interval_s, Fleet(spares=count), runs=8)
        yield f"  {count:>3} spares: {found.lost:>7.2%} lost, {found.waited:>7.2%} waiting for a node"
