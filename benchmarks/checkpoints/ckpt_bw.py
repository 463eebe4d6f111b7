"""Bandwidth of saving durably and loading with checks, compared with a raw write with fsync and a raw read."""

from __future__ import annotations

import json

from benchmarks.checkpoints.ckpt_stall import measured, medians


def main() -> None:
    """Print the medians in MB/s, and their ratios to the raw ones."""
    facts = measured("bandwidth")
    middle = medians(facts["seconds"])  # type: ignore[arg-type]
    size = float(facts["state_mb_a_rank"]) * int(facts["ranks"])  # type: ignore[arg-type,call-overload]
    for name, seconds in middle.items():
        print(json.dumps({"case": "ckpt_bw", "what": name, "s": round(seconds, 3), "mb_per_s": round(size / seconds)}))
    ratios = {
        "write_by_raw": middle["write_raw"] / middle["write_ours"],
        "write_by_raw_hinted": middle["write_raw_hinted"] / middle["write_ours"],
        **{f"{what}_by_raw": middle["read_raw"] / middle[f"{what}_ours"] for what in ("check", "load", "restore")},
        "restore_by_deepspeed": middle["restore_ours"] / middle["load_deepspeed"],
    }
    print(json.dumps({"case": "ckpt_bw", **{name: round(value, 2) for name, value in ratios.items()}}))
