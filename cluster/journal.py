"""What a run says: log lines, `metrics.jsonl` with a line a step, `segments.jsonl` with a line a start or end."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from cluster.environment import World, host_name
from cluster.files import write_text
from cluster.paths import RunPaths

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


def set_up_logging(world: World | None = None) -> None:
    """Send facts to stderr: INFO from the first rank, WARNING and above from every rank, rank and host on each line."""
    where = "" if world is None or world.size == 1 else f" [{world.rank}/{world.size} {host_name()}]"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s{where} %(levelname).1s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for package in ("cluster", "data_prep", "training", "launch"):
        logging.getLogger(package).setLevel(logging.INFO if world is None or world.is_first else logging.WARNING)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a JSONL file; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


class Journal:
    """Writes the metrics and segments of a run; on ranks other than the first it writes nothing."""

    def __init__(self, paths: RunPaths, world: World, total_steps: int) -> None:
        self.paths, self.world, self.total_steps = paths, world, total_steps
        self.stream: TextIO | None = None
        self.started = self.told = time.monotonic()
        self.last_step = 0

    def begin(self, first_step: int) -> None:
        """Open the metrics after `first_step` steps: lines of steps that will be taken again are removed."""
        self.last_step = first_step
        if not self.world.is_first:
            return
        kept = [line for line in read_lines(self.paths.metrics) if line["step"] <= first_step]
        write_text(self.paths.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self.stream = self.paths.metrics.open("a", encoding="utf-8")
        self.segment("start", step=first_step, world_size=self.world.size, host=host_name())

    def step(self, record: Mapping[str, float]) -> None:
        """Write one step's line; say it on the terminal at the ends and every few seconds."""
        self.last_step = int(record["step"])
        if self.stream is None:
            return
        self.stream.write(json.dumps(record) + "\n")
        self.stream.flush()
        if self.last_step in (1, self.total_steps) or time.monotonic() - self.told >= SECONDS_BETWEEN_LINES:
            self.told = time.monotonic()
            log.info(
                "step %d/%d  loss %.4f  gradient norm %.2f  learning rate %.2e  %.0f tokens/s",
                self.last_step,
                self.total_steps,
                record["loss"],
                record["gradient_norm"],
                record["learning_rate"],
                record["tokens_per_s"],
            )

    def segment(self, event: str, **facts: Any) -> None:
        """Write one line about a start or an end of the run's training."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self.paths.segments.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"event": event, "time": now, **facts}) + "\n")

    def end(self, reason: str, exit_code: int) -> None:
        """Write why this segment ended, and close."""
        if self.stream is None:
            return
        seconds = round(time.monotonic() - self.started, 3)
        self.segment("end", step=self.last_step, reason=reason, exit_code=exit_code, seconds=seconds)
        self.stream.close()
