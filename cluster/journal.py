"""What a run writes about itself: log lines, `metrics.jsonl` (a line a step), `attempts.jsonl` (a line an event).

An attempt is one start of a run. Its events are its launch, its start, its end, and the incidents in between.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from cluster.disk.atomic_files import write_text
from cluster.environment import World, host_name
from cluster.errors import EXIT_USER_ACTION, ClusterError
from cluster.heartbeats.heartbeat import Heartbeat
from cluster.paths import RunPaths
from cluster.processes import process_age_s
from cluster.progress import DRAW_S, Waiting, duration
from cluster.terminal import ERASE, LineInPlace, can_draw_in_place
from cluster.versions import versions

log = logging.getLogger(__name__)

LOG_S = 5.0  # between two lines of steps in a log
TERMINAL_S = 30.0  # the same on a terminal, where another line is redrawn at each step
MOST_S = 60.0  # both grow with the age of the attempt, to this
RECENT_STEPS = 50  # whose mean time gives the time left
NEXT = {  # what a rank waits for after each phase of its start-up
    "imports": "planning the run",
    "plan": "waiting for the other ranks",
    "ranks": "building the model and the optimizer",
    "engine": "loading the weights and checking the model",
}
FACTS: Mapping[str, Mapping[str, tuple[type, ...]]] = {  # of each event, what is asked for and its types
    "launch": {"reached": (int,)},
    "start": {"step": (int,), "world_size": (int,)},
    "end": {"reason": (str,), "exit_code": (int,)},
    "no-start": {"reason": (str,), "exit_code": (int,)},
    "validation": {"step": (int,), "loss": (int, float)},
    "skip": {"step": (int,), "reason": (str,), "rows": (list,)},
    "rollback": {"step": (int,), "failed_step": (int,), "barred": (list,)},
}

MEASURED = ("step", "loss", "step_s", "tokens_per_s")  # the numbers of a step that its readers ask for


def set_up_logging(world: World | None = None) -> None:
    """Log to stderr: INFO from rank 0, WARNING and above from every rank, with rank and host on each line."""
    where = "" if world is None or world.size == 1 else f" [{world.rank}/{world.size} {host_name()}]"
    handler = logging.StreamHandler(sys.stderr)
    erase = ERASE if can_draw_in_place(sys.stderr) else ""  # the line in place may be drawn by another process
    handler.setFormatter(logging.Formatter(f"{erase}%(asctime)s{where} %(levelname).1s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for package in ("cluster", "data_prep", "training", "launch"):
        logging.getLogger(package).setLevel(logging.INFO if world is None or world.is_first else logging.WARNING)


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


def world_size_at(paths: RunPaths, step: int) -> int:
    """Return how many ranks took a step (from 1): those of the last attempt that started before it."""
    starts = [event for event in read_events(paths) if event["event"] == "start" and event["step"] < step]
    return int(starts[-1]["world_size"]) if starts else 1


def read_events(paths: RunPaths) -> list[dict[str, Any]]:
    """Return the events of all attempts, oldest first, those of earlier versions of Shardline included.

    Raises ClusterError for a line that is no event as `write_event` writes it.
    """
    found = []
    for path in (paths.older_attempts, paths.attempts):
        for number, event in enumerate(read_lines(path), start=1):
            if not is_event(event):
                told = f"{path}:{number}: damaged: not an event of a run: {json.dumps(event)[:60]}"
                raise ClusterError(f"{told}; remove the line, or restore the file")
            found.append(event)
    return found


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


class Journal:
    """Writes the metrics and attempts of a run, on rank 0 only, and passes on each rank's phase to its heartbeat."""

    def __init__(self, paths: RunPaths, world: World, heartbeat: Heartbeat) -> None:
        self.paths, self.world, self.heartbeat = paths, world, heartbeat
        self.stream: TextIO | None = None
        self.started = self.told = time.monotonic()
        self.waiting = Waiting(NEXT["imports"], is_shown=world.is_first)
        self.line = LineInPlace(sys.stderr)
        self.recent_s: deque[float] = deque(maxlen=RECENT_STEPS)
        self.shown = ""
        self.drawn = 0.0
        self.last_step = self.total_steps = 0
        self.phases: dict[str, float] = {}  # seconds of each phase of the start-up, imports included
        self.write_accepted: Callable[[], None] = lambda: None
        self.device = ""  # the model of this rank's GPU or processor, if known
        self.peak_memory_bytes: Callable[[], int | None] = lambda: None

    def mark(self, name: str) -> None:
        """Record that a phase of the start-up has ended."""
        self.phases[name] = round(process_age_s() - sum(self.phases.values()), 3)
        if name in NEXT and self.world.is_first:
            self.waiting.turn_to(NEXT[name])
            if name == "imports":
                self.waiting.start()

    def when_accepted(self, write: Callable[[], None]) -> None:
        """Have rank 0 call `write` once the attempt is accepted: a refused one must not change the run's folder."""
        self.write_accepted = write

    @property
    def has_begun(self) -> bool:
        return self.total_steps > 0

    def begin(self, first_step: int, total_steps: int) -> None:
        """Start the attempt after `first_step` steps; metrics of later steps are removed, as those are taken again."""
        if self.world.is_first:
            self.write_accepted()
        self.total_steps = total_steps
        self.waiting.stop()
        self.reopen(first_step)
        self.mark("weights")
        facts: dict[str, Any] = {"world_size": self.world.size, "host": host_name(), "phases": self.phases}
        if self.world.is_first:
            facts |= {"versions": versions(), "device": self.device}
        self.event("start", step=first_step, **facts)
        if self.stream is not None:
            told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.phases.items())
            log.info("ready after %.1f s: %s", sum(self.phases.values()), told)
            self.line.open()
            self.line.draw(f"step {first_step}/{total_steps}  taking the next step")
        self.phase("data", first_step)

    def isolation_checked(self, text: str, record: dict[str, Any]) -> None:
        """Report how the model isolates the documents of a row, with the measured leaks."""
        self.event("proof", **record)
        if self.stream is not None:
            log.info("%s", text)

    def reopen(self, first_step: int) -> None:
        """Open the metrics on rank 0, without the lines of steps after `first_step`."""
        self.last_step = first_step
        if not self.world.is_first:
            return
        if self.stream is not None:
            self.stream.close()
        kept = [line for line in read_metrics(self.paths.metrics) if line["step"] <= first_step]
        write_text(self.paths.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self.stream = self.paths.metrics.open("a", encoding="utf-8")

    def phase(self, name: str, step: int) -> None:
        """Set what this rank does from now on, in which step (from 0). Costs nothing: a thread writes it."""
        self.heartbeat.phase(name, step)
        if name == "save" and self.shown:
            self.line.draw(f"{self.shown}  (validating and saving)")

    def step(self, record: Mapping[str, Any]) -> None:
        """Write one step's line of metrics; log the first and last step, and one every few seconds."""
        self.last_step = int(record["step"])
        if self.stream is None:
            return
        memory = self.peak_memory_bytes()
        line = {**record, **({} if memory is None else {"memory_gb": round(memory / 1e9, 3)})}
        self.stream.write(json.dumps(line) + "\n")
        self.stream.flush()
        self.draw(record)
        if self.last_step in (1, self.total_steps) or self.is_line_due(time.monotonic()):
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
            self.line.draw(self.shown)

    def is_line_due(self, now: float) -> bool:
        """Return whether a step's line is due: rarer the older the attempt is, so that a long log stays readable."""
        least_s = TERMINAL_S if self.line.is_possible else LOG_S
        return now - self.told >= min(MOST_S, max(least_s, (now - self.started) / 50))

    def draw(self, record: Mapping[str, Any]) -> None:
        """Draw the step on a terminal, with the time left at the pace of the most recent steps."""
        self.recent_s.append(record.get("step_s", 0.0))
        left_s = (self.total_steps - self.last_step) * sum(self.recent_s) / len(self.recent_s)
        speed = f"{record['tokens_per_s']:,.0f} tokens/s"
        self.shown = (
            f"step {self.last_step}/{self.total_steps}  loss {record['loss']:.4f}  {speed}  {duration(left_s)} left"
        )
        if time.monotonic() - self.drawn >= DRAW_S:
            self.drawn = time.monotonic()
            self.line.draw(self.shown)

    def skip(self, step: int, reason: str, rows: Sequence[int]) -> None:
        """Report that a step (from 1) changed no weight, and which rows were in it."""
        self.event("skip", step=step, reason=reason, rows=list(rows))
        if self.stream is not None:
            shown = ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
            look = f"shardline inspect {shlex.quote(str(self.paths.root))} --step {step}"
            log.warning("skipped step %d: %s; rows %s; to see them: %s", step, reason, shown, look)

    def held_out_loss(self, step: int, loss: float) -> None:
        """Report the validation loss after `step` steps."""
        self.event("validation", step=step, loss=loss)
        if self.stream is not None:
            log.info("step %d/%d  validation loss %.4f", step, self.total_steps, loss)

    def roll_back(self, to_step: int, failed_step: int, excluded: Sequence[int]) -> None:
        """Report a rollback from `failed_step` to `to_step`; the `excluded` steps (from 0) are never taken again."""
        self.reopen(to_step)
        numbers = [step + 1 for step in excluded]
        self.event("rollback", step=to_step, failed_step=failed_step, barred=numbers)  # the key in the file's format
        if self.stream is not None:
            log.warning("rolled back from step %d to step %d; excluded steps: %s", failed_step, to_step, numbers)
        self.phase("data", to_step)

    def change_length(self, changed: Mapping[str, Sequence[Any]], total_steps: int) -> None:
        """Report, before the attempt starts, that the run now ends at another step. Only on rank 0.

        `changed` holds what each setting was and is.
        """
        write_event(self.paths, "length", changed=dict(changed), total_steps=total_steps)
        told = ", ".join(f"{key} was {was}, is {now}" for key, (was, now) in changed.items())
        log.info("the run now ends at step %d: %s", total_steps, told)

    def event(self, name: str, **facts: Any) -> None:
        if self.stream is not None:
            write_event(self.paths, name, **facts)

    def end_by_another_rank(self) -> str | None:
        """Return the reason that another rank wrote for the end of this attempt, if a person must act on it."""
        if not self.has_begun:
            return None
        for event in reversed(read_events(self.paths)):
            if event["event"] in ("launch", "start"):
                break
            if event["event"] == "end" and event["exit_code"] == EXIT_USER_ACTION:
                return str(event["reason"])
        return None

    def end(self, reason: str, exit_code: int, *, is_own: bool = False) -> None:
        """Write why this attempt ended, or did not start, and close.

        Rank 0 writes it for all. With `is_own`, the error is one that only this rank can see, such as damaged rows: it
        writes the reason itself, before the others fail because it is gone, and rank 0 then adds no second one.
        """
        self.waiting.stop()
        self.line.close()
        self.heartbeat.stop()
        writes = self.world.is_first or (is_own and self.has_begun)
        if writes and self.end_by_another_rank() is None:
            seconds = round(time.monotonic() - self.started, 3)
            name = "end" if self.has_begun else "no-start"
            write_event(self.paths, name, step=self.last_step, reason=reason, exit_code=exit_code, seconds=seconds)
        if self.stream is not None:
            self.stream.close()
            self.stream = None
