"""What a status says about checkpoints: whether the newest is whole, and how often to save."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from training.reporting.run_state import Attempt, RunState
from training.reporting.saves import checkpoints_text, saving_text

BEGIN = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


def commit(folder: Path, files: Any = None) -> Path:
    """Write a checkpoint of one file of 1 MB."""
    folder.mkdir(parents=True)
    (folder / "shard.safetensors").write_bytes(bytes(1_000_000))
    files = {"shard.safetensors": {"bytes": 1_000_000}} if files is None else files
    (folder / "commit.json").write_text(json.dumps({"files": files}))
    return folder


def told(checkpoints: Path) -> str:
    newest = max(checkpoints.glob("step-*/commit.json")).stat().st_mtime
    return checkpoints_text(checkpoints, datetime.fromtimestamp(newest + 120, UTC))


def test_a_whole_checkpoint_is_told_with_its_age(tmp_path: Path) -> None:
    assert checkpoints_text(tmp_path, BEGIN) == "none yet"
    commit(tmp_path / "step-000004")
    commit(tmp_path / "step-000008")
    assert told(tmp_path) == "2, newest at step 8, 2 min old, whole; 2.0 MB on disk"


def test_a_newest_checkpoint_that_is_not_whole_is_told(tmp_path: Path) -> None:
    shard = commit(tmp_path / "step-000008") / "shard.safetensors"
    shard.write_bytes(b"")
    assert "its file shard.safetensors is cut: the next start uses an older one" in told(tmp_path)
    shard.unlink()
    assert "its file shard.safetensors is missing" in told(tmp_path)
    for damaged in ("{", "[]", '{"files": {"a": 1}}'):
        (tmp_path / "step-000008" / "commit.json").write_text(damaged)
        assert "its commit.json is damaged: the next start uses an older one" in told(tmp_path)


def run_of(*, stall_s: float, every: int, failures: int) -> RunState:
    """A run of 1,000 steps of 10 s, with so many failures that cost nothing."""
    lines = [
        {"step": step, "step_s": 10.0, "save_s": stall_s if step % every == 1 and step > 1 else 0.0}
        for step in range(1, 1001)
    ]
    attempts = []
    for number in range(failures + 1):
        last = number == failures
        span = 1000 // (failures + 1)
        begun = BEGIN + timedelta(seconds=number * span * 10)
        start = {"time": begun.isoformat(), "step": number * span}
        end = {"time": (begun + timedelta(seconds=span * 10)).isoformat(), "exit_code": 0 if last else 1}
        attempts.append(Attempt(start=start, end=end, kept=lines[number * span : (number + 1) * span]))
    return RunState(total_steps=1000, lines=lines, attempts=attempts, validation={}, events=[])


@pytest.mark.parametrize(
    ("stall_s", "every", "failures", "text"),
    [
        (2.0, 200, 0, "every 200 steps (33 min), for which training waits 2 s"),
        (2.0, 200, 4, "every 200 steps (33 min), for which training waits 2 s; with a failure every 42 min, every"),
        (2.0, 10, 4, "every 10 steps (2 min), for which training waits 2 s"),  # by Young and Daly 9 steps
        (
            0.001,
            100,
            4,
            "every 100 steps (17 min), for which training waits 0.001 s; with a failure every 42 min, every 6",
        ),
    ],
)
def test_more_saves_are_advised_where_failures_cost_more_than_they_would(
    stall_s: float, every: int, failures: int, text: str
) -> None:
    found = saving_text(run_of(stall_s=stall_s, every=every, failures=failures))
    assert found.startswith(text) and found.endswith("lose least") == ("failure" in text)


def test_a_run_that_has_saved_less_than_twice_says_nothing_about_it() -> None:
    assert saving_text(run_of(stall_s=1.0, every=900, failures=4)) == ""
