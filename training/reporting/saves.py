"""What a run's checkpoints are worth: how many, how old, whether whole, and how often to save by what was measured."""

from __future__ import annotations

import json
import statistics
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from cluster.disk.sizes import size_below
from cluster.errors import EXIT_FAILED
from cluster.paths import CHECKPOINT_FOLDER, COMMIT_FILE
from cluster.wording import bytes_text, count_of
from training.costs.saving import best_interval_s
from training.reporting.run_state import RunState
from training.reporting.wording import duration

ENOUGH_FAILURES = 2
SHORTEST_S = 60.0  # of advice: how long a save takes in the background is not known here
FAR_OFF = 2.0  # times as long as would be best, from which on more saves are advised


def committed(folder: Path) -> list[tuple[int, Path]]:
    """Return the step and the folder of each checkpoint, oldest first."""
    return sorted(
        (int(match[1]), path)
        for path in folder.glob("step-*")
        if (match := CHECKPOINT_FOLDER.fullmatch(path.name)) and (path / COMMIT_FILE).is_file()
    )


def checkpoints_text(folder: Path, now: datetime) -> str:
    """Return how many checkpoints there are, how old the newest is, and whether its files are there in full size."""
    found = committed(folder)
    if not found:
        return "none yet"
    step, newest = found[-1]
    size = sum(size_below(path) for _, path in found)  # an old one may be removed meanwhile
    try:
        age_s = max(0.0, now.timestamp() - (newest / COMMIT_FILE).stat().st_mtime)
        problem = first_problem(newest)
    except OSError as error:
        return f"{count_of(len(found), 'checkpoint')}; the newest, at step {step:,}, cannot be read: {error.strerror}"
    whole = f"its {problem}" if problem else "whole"
    return f"{len(found)}, newest at step {step:,}, {duration(age_s)} old, {whole}; {bytes_text(size)} on disk"


def first_problem(checkpoint: Path) -> str:
    """Return the first file that is not of the size in the commit file; nothing if all are. Reads no content."""
    try:
        files = json.loads((checkpoint / COMMIT_FILE).read_text(encoding="utf-8"))["files"]
        expected = {name: facts["bytes"] for name, facts in files.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{COMMIT_FILE} is damaged: the next start uses an older one"
    for name, size in expected.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size:
            return f"file {name} is {'cut' if path.is_file() else 'missing'}: the next start uses an older one"
    return ""


def saving_text(state: RunState) -> str:
    """Return how often the run saves and what that costs; with failures, how often would lose less."""
    saved = [line for line in state.lines if line.get("save_s")]
    every = [after["step"] - before["step"] for before, after in pairwise(saved)]
    if not every or state.step_s is None:
        return ""
    steps, stall_s = min(every), statistics.median(line["save_s"] for line in saved)
    interval_s = steps * state.step_s
    told = f"every {count_of(steps, 'step')} ({duration(interval_s)}), for which training waits {stall_s:.2g} s"
    failures = sum(attempt.end is None or attempt.end["exit_code"] == EXIT_FAILED for attempt in state.attempts[:-1])
    if failures < ENOUGH_FAILURES:
        return told
    best_s = max(SHORTEST_S, best_interval_s(stall_s, state.elapsed_s / failures))
    if interval_s < FAR_OFF * best_s:
        return told
    better = count_of(max(1, round(best_s / state.step_s)), "step")
    return f"{told}; with a failure every {duration(state.elapsed_s / failures)}, every {better} would lose least"
