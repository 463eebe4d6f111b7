"""What the tests of this folder wait for, and read of a run that a job trains."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.heartbeats.heartbeat_files import MOST_BYTES, parsed_object, read_small
from cluster.journal.records import read_lines

TRAIN = str(Path(__file__).resolve().parents[2] / "launch" / "train.sh")
PATIENCE_S = 600.0  # when something has gone wrong, not how long it may take


def until(condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Wait for a condition; fail with what `otherwise` tells if it never comes."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(otherwise(), pytrace=False)
        time.sleep(0.1)


def metrics(job: Any) -> list[dict[str, Any]]:
    return read_lines(job.folder / "run" / "metrics.jsonl")


def losses(job: Any) -> dict[int, float]:
    """Return the loss of each step; a step that is missing or double in the file fails here."""
    lines = metrics(job)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return {line["step"]: line["loss"] for line in lines}


def attempts(job: Any) -> list[tuple[str, int]]:
    """Return the starts and ends of the run, each with its step."""
    lines = read_lines(job.folder / "run" / "attempts.jsonl")
    return [(line["event"], line["step"]) for line in lines if line["event"] in ("start", "end")]


def saved_steps(job: Any) -> list[int]:
    commits = sorted((job.folder / "run" / "checkpoints").glob("step-*/commit.json"))
    return [json.loads(commit.read_text())["step"] for commit in commits]


def heartbeats(job: Any) -> list[dict[str, Any]]:
    """Return the last beat of each rank, as its host's file on the shared disk tells it."""
    paths = (job.folder / "run" / "heartbeats").glob("host-*.json")
    hosts = [parsed_object(read_small(path, MOST_BYTES)) for path in paths]  # one may be removed meanwhile
    beats = [{**beat, "host": host["host"]} for host in hosts if host for beat in host["ranks"]]
    return sorted(beats, key=lambda beat: int(beat["rank"]))
