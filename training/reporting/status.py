"""The status of a run, from its folder alone, while it trains or long after. Needs no torch."""

from __future__ import annotations

import json
import shlex
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster.disk.run_lock import is_held_by_training
from cluster.disk.sizes import size_below
from cluster.errors import DataError
from cluster.journal import MEASURED, read_events, read_metrics
from cluster.model_files import weights_digest
from cluster.paths import CHECKPOINT_FOLDER, COMMIT_FILE, RunPaths
from training.reporting.wording import bytes_text, duration

RECENT_STEPS = 50  # whose median time is the current speed
QUIET_S = 300.0  # a run that writes nothing for this long, and for ten steps, counts as dead


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a run, from start to end; `end` is None if none was written: it is running, or was killed."""

    start: dict[str, Any]
    end: dict[str, Any] | None
    kept_steps: int
    kept_s: float
    """How many of its steps are part of the run, not taken again later, and how long they took."""

    @property
    def started(self) -> datetime:
        return datetime.fromisoformat(self.start["time"])

    @property
    def last_seen(self) -> datetime:
        """Its end or, without one, its start plus the time of its kept steps: a lower bound."""
        return datetime.fromisoformat(self.end["time"]) if self.end else self.started + timedelta(seconds=self.kept_s)

    @property
    def seconds(self) -> float:
        """How long it lasted: at least the time of its kept steps, whatever the clock says."""
        return max(self.kept_s, (self.last_seen - self.started).total_seconds())


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a run's files say: length, metrics of each step, attempts, held-out losses by step, and all events."""

    total_steps: int | None
    lines: list[dict[str, Any]]
    attempts: list[Attempt]
    validation: dict[int, float]
    events: list[dict[str, Any]]
    is_held: bool | None = None
    """Whether the training that took the run's lock is alive; None if that cannot be seen from here."""

    @property
    def step(self) -> int:
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def skipped(self) -> int:
        """How many steps changed no weight: skipped by a guard, or excluded by a rollback."""
        return sum("skipped" in line for line in self.lines)

    @property
    def failed_starts(self) -> list[dict[str, Any]]:
        """The attempts that were refused, or failed before their first step."""
        return [event for event in self.events if event["event"] == "no-start"]

    @property
    def failed_start(self) -> dict[str, Any] | None:
        """The newest attempt, if it was refused or failed before its first step."""
        newest = next((event for event in reversed(self.events) if event["event"] in ("start", "no-start")), None)
        return newest if newest and newest["event"] == "no-start" else None

    @property
    def launched_again(self) -> str | None:
        """When the newest launch was, if it has written nothing else yet."""
        return str(self.events[-1]["time"]) if self.events and self.events[-1]["event"] == "launch" else None

    @property
    def is_finished(self) -> bool:
        return self.total_steps is not None and self.step >= self.total_steps

    @property
    def restarts(self) -> int:
        return max(0, len(self.attempts) - 1)

    @property
    def step_s(self) -> float | None:
        """Median seconds of the most recent steps."""
        return statistics.median(line["step_s"] for line in self.lines[-RECENT_STEPS:]) if self.lines else None

    @property
    def kept_s(self) -> float:
        return float(sum(line["step_s"] for line in self.lines))

    @property
    def elapsed_s(self) -> float:
        """Seconds from the first start to when the last attempt was last seen, queues and lost work included.

        Attempts and the waits between them are added up one by one, so that a clock that was set back, or that is
        behind on another host, makes a wait zero and not negative.
        """
        waits = [(after.started - before.last_seen).total_seconds() for before, after in pairwise(self.attempts)]
        return sum(attempt.seconds for attempt in self.attempts) + sum(max(0.0, wait) for wait in waits)


def read_state(paths: RunPaths) -> RunState:
    """Read a run's folder; what does not exist yet is empty."""
    lines = read_metrics(paths.metrics, MEASURED)
    plan, events = read_record(paths.plan), read_events(paths)
    return RunState(
        total_steps=plan["total_steps"] if plan else None,
        lines=lines,
        attempts=paired_attempts(events, lines),
        events=events,
        validation={event["step"]: event["loss"] for event in events if event["event"] == "validation"},
        is_held=is_held_by_training(paths),
    )


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's object, or None if there is no such file. Raises DataError for one that is damaged."""
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: damaged: {error}; remove it, and the command that wrote it writes it again") from None


def paired_attempts(events: list[dict[str, Any]], lines: list[dict[str, Any]]) -> list[Attempt]:
    """Pair each start with its end; a start that is followed by another start has none."""
    starts = [number for number, event in enumerate(events) if event["event"] == "start"]
    attempts = []
    for number, following in pairwise([*starts, len(events)]):
        end = next((event for event in events[number:following] if event["event"] == "end"), None)
        first = events[number]["step"]
        until = events[following]["step"] if following < len(events) else float("inf")
        times = [line["step_s"] for line in lines if first < line["step"] <= until]
        attempts.append(Attempt(start=events[number], end=end, kept_steps=len(times), kept_s=sum(times)))
    return attempts


def command(verb: str, paths: RunPaths) -> str:
    """Return the command line for a verb, with the run's folder in place of its YAML once the folder holds a copy."""
    return f"shardline {verb} {shlex.quote(str(paths.root)) if paths.config.is_file() else 'RUN.yaml'}"


def status_text(paths: RunPaths, now: datetime | None = None) -> str:
    """Return a run's status, one fact per line, ending with the next command. A folder without a run is no error."""
    facts = status_facts(paths, read_state(paths), now or datetime.now(UTC))
    return "\n".join(f"{name:<13}{fact}" for name, fact in facts.items() if fact)


def status_facts(paths: RunPaths, state: RunState, now: datetime) -> dict[str, str]:
    """Return the facts of a run's status by their names; those that do not apply are empty."""
    quiet_s = seconds_since_written(paths, state, now)
    return {
        "run": str(paths.root),
        "step": step_text(state),
        "time left": time_left(state),
        "state": starting_text(state, now) or ending_text(state, quiet_s),
        "validation": validation_text(state.validation),
        "skipped": f"{state.skipped} steps changed no weight" if state.skipped else "",
        "starts": starts_text(state),
        "checkpoints": checkpoints_text(paths.checkpoints),
        "export": str(paths.export) if paths.export.is_dir() else "none yet",
        "evaluation": evaluation_text(read_record(paths.evaluation), paths.export),
        "report": str(paths.report) if paths.report.is_file() else "none yet",
        "next": next_text(paths, state, quiet_s, is_starting=is_starting(state, now)),
    }


def seconds_since_written(paths: RunPaths, state: RunState, now: datetime) -> float | None:
    """Return how long ago an attempt without an end last wrote; None if nothing should be running.

    A time in the future, from before the clock was set back, counts as equally far in the past.
    """
    if not state.attempts or state.attempts[-1].end or state.failed_start:
        return None
    written = [state.attempts[-1].started.timestamp()]
    if paths.metrics.is_file():
        written.append(paths.metrics.stat().st_mtime)
    return min(abs(now.timestamp() - moment) for moment in written)


def is_alive(state: RunState, quiet_s: float | None) -> bool:
    if quiet_s is None or state.is_held is not None:
        return quiet_s is not None and state.is_held is True
    return quiet_s < max(QUIET_S, 10 * (state.step_s or 0.0))


def is_starting(state: RunState, now: datetime) -> bool:
    """Return whether a launch that is alive, or of the last minutes, has written nothing else yet."""
    moment = state.launched_again
    if moment is None or state.is_held is not None:
        return moment is not None and state.is_held is True
    return abs((now - datetime.fromisoformat(moment)).total_seconds()) < QUIET_S


def is_going_on(state: RunState, quiet_s: float | None, now: datetime) -> bool:
    """Return whether a run trains or starts, or has yet to be started for the first time."""
    has_begun = bool(state.attempts or state.failed_starts)
    is_held = state.is_held is True and not state.is_finished  # it starts, or what it started ends, or is started again
    return not has_begun or is_held or is_alive(state, quiet_s) or is_starting(state, now)


def starting_text(state: RunState, now: datetime) -> str:
    """Return since when the run has been starting; nothing if it is not, or if the start before this one failed."""
    if not is_starting(state, now) or state.failed_start:
        return ""
    return f"starting: launched at {state.launched_again}, nothing written yet"


def step_text(state: RunState) -> str:
    if not state.lines:
        return f"none of {state.total_steps:,}" if state.total_steps else "none"
    last = state.lines[-1]
    of = f" of {state.total_steps:,} ({state.step / state.total_steps:.1%})" if state.total_steps else ""
    return f"{state.step:,}{of}, loss {last['loss']:.4f}, {last['tokens_per_s']:,.0f} tokens/s"


def time_left(state: RunState) -> str:
    if state.step_s is None or state.total_steps is None or state.is_finished:
        return ""
    seconds = (state.total_steps - state.step) * state.step_s
    return f"{duration(seconds)} at {state.step_s:.3g} s a step"


def starts_text(state: RunState) -> str:
    if not state.attempts and not state.failed_starts:
        return ""
    failed = f"; and {len(state.failed_starts)} that took no step" if state.failed_starts else ""
    return f"{len(state.attempts)}, restarts: {state.restarts}{failed}"


def ending_text(state: RunState, quiet_s: float | None) -> str:
    if failed := state.failed_start:
        again = f"; launched again at {state.launched_again}, nothing written yet" if state.launched_again else ""
        code = failed["exit_code"]
        return f"the last attempt took no step: {failed['reason']} (exit code {code}) at {failed['time']}{again}"
    if not state.attempts:
        return "never trained"
    end = state.attempts[-1].end
    if end:
        reason = "finished" if end["reason"] == "done" else f"ended early: {end['reason']}"
        return f"{reason} (exit code {end['exit_code']}) at {end['time']}"
    ago = f"{duration(quiet_s or 0.0)} ago"
    wrote = f"the last step was written {ago}" if state.lines else f"it started {ago} and has written no step"
    if state.is_held is not None:
        return f"running: {wrote}" if state.is_held else f"killed or crashed: {wrote}"
    return f"running or killed: {wrote}" if is_alive(state, quiet_s) else f"probably killed or crashed: {wrote}"


def validation_text(losses: dict[int, float]) -> str:
    if not losses:
        return ""
    last, best = max(losses), min(losses, key=lambda step: losses[step])
    return f"loss {losses[last]:.4f} at step {last:,}; lowest: {losses[best]:.4f} at step {best:,}"


def checkpoints_text(folder: Path) -> str:
    found = sorted(
        (int(match[1]), path)
        for path in folder.glob("step-*")
        if (match := CHECKPOINT_FOLDER.fullmatch(path.name)) and (path / COMMIT_FILE).is_file()
    )
    if not found:
        return "none yet"
    size = sum(size_below(path) for _, path in found)  # an old one may be removed meanwhile
    return f"{len(found)}, newest at step {found[-1][0]:,}, {bytes_text(size)} on disk"


def evaluation_text(evaluation: dict[str, Any] | None, export: Path) -> str:
    if evaluation is None:
        return "none yet"
    base, tuned = evaluation["models"]["base"], evaluation["models"]["tuned"]
    older = ", of an earlier export than the one that is there now" if is_stale(evaluation, export) else ""
    return f"held-out loss {base['loss']:.4f} -> {tuned['loss']:.4f}{older}"


def is_stale(evaluation: dict[str, Any], export: Path) -> bool:
    """Return whether an evaluation is of another export than the one that is there now.

    One that an earlier version wrote does not tell, and counts as current.
    """
    known = (evaluation.get("export") or {}).get("digest")
    return bool(known) and export.is_dir() and known != weights_digest(export)


def next_text(paths: RunPaths, state: RunState, quiet_s: float | None, *, is_starting: bool) -> str:
    if is_alive(state, quiet_s) or is_starting:
        return f"wait; to save and stop it: touch {shlex.quote(str(paths.stop_request))}"
    if state.total_steps is None and not is_prepared(paths):
        return command("prepare", paths)
    if not state.is_finished:
        return command("train", paths) + (" (resumes from the newest checkpoint)" if state.attempts else "")
    evaluation = read_record(paths.evaluation)
    for made, verb in ((paths.export, "export"), (paths.evaluation, "evaluate"), (paths.report, "report")):
        if not made.exists() or (verb == "evaluate" and evaluation and is_stale(evaluation, paths.export)):
            return command(verb, paths)
    return command("chat", paths)


def is_prepared(paths: RunPaths) -> bool:
    from data_prep.shards import MANIFEST  # here, as it imports numpy and Arrow, and most runs do not come this far

    return (data_folder(paths) / MANIFEST).is_file()


def data_folder(paths: RunPaths) -> Path:
    """Return where the prepared data is, or will be."""
    from cluster.config_loading import read_yaml  # imports a YAML parser

    data = read_yaml(paths.config).get("data") if paths.config.is_file() else None
    folder = data.get("folder") if isinstance(data, dict) else None
    return Path(paths.located(folder)) if folder else paths.shards
