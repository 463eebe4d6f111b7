"""The records of a run: `metrics.jsonl`, a line a step, and `attempts.jsonl`, a line an event.

An attempt is one start of a run. Its events are its launch, its start, its end, and the incidents in between.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.errors import EXIT_FAILED, ClusterError
from cluster.paths import RunPaths

FACTS: Mapping[str, Mapping[str, tuple[type, ...]]] = {  # of each event, what is asked for and its types
    "launch": {"reached": (int,)},
    "start": {"step": (int,), "world_size": (int,)},
    "end": {"reason": (str,), "exit_code": (int,)},
    "no-start": {"reason": (str,), "exit_code": (int,)},
    "cause": {"reason": (str,)},
    "validation": {"step": (int,), "loss": (int, float)},
    "skip": {"step": (int,), "reason": (str,), "rows": (list,)},
    "host-excluded": {"host": (str,), "reason": (str,)},
    "not-requeued": {"job": (str,)},
    "rollback": {"step": (int,), "failed_step": (int,), "barred": (list,)},
}

MEASURED = ("step", "loss", "step_s", "tokens_per_s")  # the numbers of a step that its readers ask for


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file, without a last line that a crash cut short; none if there is no file.

    Raises ClusterError if another line is not a JSON object.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [parsed(line, path, number) for number, line in enumerate(whole.splitlines(), start=1)]


def parsed(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        raise ClusterError(
            f"{path}:{number}: damaged: not a JSON object: {line[:60]!r}; remove the line, or restore the file"
        ) from None


def read_metrics(path: Path, asked: Sequence[str] = ("step",)) -> list[dict[str, Any]]:
    """Return the lines of a metrics file. Raises ClusterError for one that lacks a number that is asked for."""
    lines = read_lines(path)
    for number, line in enumerate(lines, start=1):
        missing = [name for name in asked if type(line.get(name)) not in (int, float)]
        if missing:
            raise ClusterError(
                f"{path}:{number}: damaged: no number under {', '.join(missing)}: {json.dumps(line)[:60]};"
                " remove the line, or restore the file"
            )
    return lines


def last_step(path: Path) -> int:
    """Return the step of the last whole line of a metrics file; 0 without one."""
    lines = read_metrics(path)
    return int(lines[-1]["step"]) if lines else 0


def newest_not_requeued(events: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the job that stopped last and that Slurm did not put back into the queue, if nothing was started since."""
    return str(events[-1]["job"]) if events and events[-1]["event"] == "not-requeued" else None


def attempt_of_step(
    events: Sequence[dict[str, Any]], step: int
) -> tuple[dict[str, Any] | None, Sequence[dict[str, Any]]]:
    """Return the start of the attempt that took a step (from 1), the last that began before it, and all events since.

    A run without such a start, which no rank of ours has recorded, has None.
    """
    places = [n for n, event in enumerate(events) if event["event"] == "start" and event["step"] < step]
    return (events[places[-1]], events[places[-1] + 1 :]) if places else (None, [])


def world_size_at(paths: RunPaths, step: int) -> int:
    """Return how many ranks took a step (from 1)."""
    start, _ = attempt_of_step(read_events(paths), step)
    return int(start["world_size"]) if start else 1


def seconds_since_start(events: Sequence[Mapping[str, Any]]) -> float | None:
    """Return for how long the newest launch has run since its start, by the clock of the hosts; None without one."""
    for event in reversed(events):
        if event["event"] == "start":
            began = datetime.fromisoformat(event["time"])
            return max(0.0, round((datetime.now(UTC) - began).total_seconds(), 3))
        if event["event"] == "launch":
            break
    return None


def read_events(paths: RunPaths) -> list[dict[str, Any]]:
    """Return the events of all attempts, oldest first, those of earlier versions of Shardline included.

    Raises ClusterError for a line that is no event as `write_event` writes it.
    """
    found: list[dict[str, Any]] = []
    for path in (paths.older_attempts, paths.attempts):
        for number, event in enumerate(read_lines(path), start=1):
            if not is_event(event):
                told = f"{path}:{number}: damaged: not an event of a run: {json.dumps(event)[:60]}"
                raise ClusterError(f"{told}; remove the line, or restore the file")
            if event["event"] == "cause":
                give_cause(found, event["reason"])
            found.append(event)
    return found


def give_cause(events: Sequence[dict[str, Any]], cause: str) -> None:
    """Make a cause, recorded after the ranks' own ends, the reason of these: they failed because of it."""
    for event in reversed(events):
        if event["event"] == "launch":
            return
        if event["event"] in ("end", "no-start") and event["exit_code"] == EXIT_FAILED:
            event["reason"] = cause


def is_event(values: Mapping[str, Any]) -> bool:
    """Return whether an object has the facts that every reader of its kind of event asks for."""
    try:
        datetime.fromisoformat(values["time"])
        return all(type(values[name]) in kinds for name, kinds in FACTS.get(values["event"], {}).items())
    except (KeyError, TypeError, ValueError):
        return False


def write_event(paths: RunPaths, event: str, **facts: Any) -> None:
    """Append an event to the run's attempts: a launch, a start, an end, or an incident in between."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    paths.root.mkdir(parents=True, exist_ok=True)
    cut_torn_line(paths.attempts)
    with paths.attempts.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"event": event, "time": now, **facts}) + "\n")


def cut_torn_line(path: Path) -> None:
    """Remove a last line that a crash cut short: the next line would be appended to it and lost."""
    if not path.exists():
        return
    with path.open("r+b") as stream:
        content = stream.read()
        if content and not content.endswith(b"\n"):
            stream.truncate(content.rfind(b"\n") + 1)
