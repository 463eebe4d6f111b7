"""How long training waits for a save: ours, DeepSpeed's and a bare copy of the state, in turns."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from cluster.launching.local_launcher import run_ranks

RANKS, ROUNDS = 2, 5


def measured(case: str) -> dict[str, object]:
    """Run the ranks of a case; return what they took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.checkpoints.checkpoint_ranks", case, folder, str(ROUNDS)]
        if run_ranks(command, RANKS):
            raise SystemExit(f"{case}: the ranks failed")
        facts: dict[str, object] = json.loads((Path(folder) / "taken.json").read_text())
        return facts


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Print the medians, and the ratios that matter."""
    facts = measured("stall")
    taken: dict[str, list[float]] = facts["seconds"]  # type: ignore[assignment]
    middle = medians(taken)
    for name, value in middle.items():
        print(json.dumps({"case": "ckpt_stall", "what": name, "s": round(value, 3), "times": len(taken[name])}))
    print(
        json.dumps(
            {
                "case": "ckpt_stall",
                "state_mb_a_rank": facts["state_mb_a_rank"],
                "ours_by_memcpy": round(middle["ours"] / middle["memcpy"], 2),
                "ours_by_deepspeed": round(middle["ours"] / middle["deepspeed"], 3),
                "step_while_writing_by_step": round(middle.get("step_while_writing", 0.0) / middle["step"], 2),
            }
        )
    )
