"""A run's journal written by hand: the files as training writes them, in the order in which it does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from cluster.config_loading import dump_yaml
from cluster.disk.atomic_files import write_text
from cluster.journal.records import read_metrics, write_event
from cluster.paths import RunPaths

CONFIGURATION = {
    "name": "boutique",
    "folder": ".",
    "seed": 7,
    "trackers": ["tensorboard"],
    "data": {"sources": [{"path": "https://user:hunter2@host/corpus"}], "row_tokens": 64, "hub_token": "hf_hunter2"},
    "model": {"path": "/home/someone/models/SmolLM2"},
    "train": {"learning_rate": 1e-3, "steps": 40, "lora": None},
}


class Life:
    """What happens to a run."""

    def __init__(self, folder: Path) -> None:
        self.paths = RunPaths(folder)
        self.taken = 0
        write_text(self.paths.config, dump_yaml(CONFIGURATION))
        write_event(self.paths, "launch", reached=0)

    def begin(self, step: int) -> None:
        """Start, or resume, after `step` steps."""
        self.cut(step)
        write_event(self.paths, "start", step=step, world_size=2)

    def roll_back(self, step: int) -> None:
        failed = self.steps()[-1]
        self.cut(step)
        write_event(self.paths, "rollback", step=step, failed_step=failed, barred=[failed])

    def cut(self, step: int) -> None:
        kept = [line for line in read_metrics(self.paths.metrics) if line["step"] <= step]
        write_text(self.paths.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def step(self, *, loss: float | None = None) -> None:
        """Take the next step; its loss tells how many steps were taken before it, so that no two are alike."""
        number = (self.steps() or [0])[-1] + 1
        self.taken += 1
        line: dict[str, Any] = {
            "step": number,
            "loss": 1 / 3 + self.taken if loss is None else loss,
            "gradient_norm": 0.1 * number,
            "learning_rate": 1e-3 / number,
            "tokens_per_s": 100.5,
            "step_s": 0.5,
            "save_s": 0.0,
        }
        if loss is not None and math.isnan(loss):
            line["skipped"] = "loss is nan"
        with self.paths.metrics.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        if "skipped" in line:
            write_event(self.paths, "skip", step=number, reason="loss is nan", rows=[1, 2])
        if number % 4 == 0:
            write_event(self.paths, "validation", step=number, loss=2 / 3 + self.taken)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def end(self) -> None:
        write_event(self.paths, "end", step=self.steps()[-1], reason="done", exit_code=0)

    def steps(self) -> list[int]:
        return [line["step"] for line in read_metrics(self.paths.metrics)]

    def losses(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in read_metrics(self.paths.metrics)}
