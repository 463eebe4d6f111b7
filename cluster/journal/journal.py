"""The journal of one rank: it logs, records and tells the watchdog what the rank does."""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from cluster.disk.atomic_files import write_text
from cluster.environment import node_name, started_by_launcher
from cluster.errors import EXIT_USER_ACTION
from cluster.heartbeats.heartbeat import Heartbeat
from cluster.journal.records import (
    read_events,
    read_metrics,
    write_event,
)
from cluster.network.world import World
from cluster.paths import RunPaths
from cluster.processes import process_age_s, uptime_s
from cluster.progress import DRAW_S, Waiting, duration
from cluster.terminal import LineInPlace, console
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


class Journal:
    """Writes the metrics and attempts of a run, on rank 0 only, and passes on each rank's phase to its heartbeat."""

    def __init__(self, paths: RunPaths, world: World, heartbeat: Heartbeat) -> None:
        self.paths, self.world, self.heartbeat = paths, world, heartbeat
        self.stream: TextIO | None = None
        self.started = self.told = time.monotonic()
        self.begun: float | None = None  # when the attempt's start was recorded
        self.waiting = Waiting(NEXT["imports"], is_shown=world.is_first)
        self.line = LineInPlace(console())
        self.recent_s: deque[float] = deque(maxlen=RECENT_STEPS)
        self.shown = ""
        self.drawn = 0.0
        self.last_step = self.total_steps = 0
        self.phases: dict[str, float] = {}  # seconds of each phase of the start-up, imports included
        self.write_accepted: Callable[[int], None] = lambda first_step: None
        self.log_file: Path | None = None  # this rank's own log
        self.device = ""  # the model of this rank's GPU or processor, if known
        self.peak_memory_bytes: Callable[[], int | None] = lambda: None
        self.mfu: Callable[[Mapping[str, Any]], float | None] = lambda record: None

    def mark(self, name: str) -> None:
        """Record that a phase of the start-up has ended."""
        self.phases[name] = round(start_age_s() - sum(self.phases.values()), 3)
        if name in NEXT and self.world.is_first:
            self.waiting.turn_to(NEXT[name])
            if name == "imports":
                self.waiting.start()

    def when_accepted(self, write: Callable[[int], None]) -> None:
        """Have rank 0 call `write` with the steps done once the attempt is accepted: a refused one changes no file."""
        self.write_accepted = write

    @property
    def has_begun(self) -> bool:
        return self.total_steps > 0

    def begin(self, first_step: int, total_steps: int) -> None:
        """Start the attempt after `first_step` steps; metrics of later steps are removed, as those are taken again."""
        if self.world.is_first:
            self.write_accepted(first_step)
        self.total_steps = total_steps
        self.waiting.stop()
        self.reopen(first_step)
        self.mark("weights")
        facts: dict[str, Any] = {"world_size": self.world.size, "host": node_name(), "phases": self.phases}
        if self.world.is_first:
            facts |= {"versions": versions(), "device": self.device}
        self.event("start", step=first_step, **facts)
        self.begun = time.monotonic()
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
        memory, mfu = self.peak_memory_bytes(), self.mfu(record)
        line = {
            **record,
            **({} if memory is None else {"memory_gb": round(memory / 1e9, 3)}),
            **({} if mfu is None else {"mfu": round(mfu, 4)}),
        }
        self.stream.write(json.dumps(line) + "\n")
        self.stream.flush()
        self.draw(record)
        if self.last_step in (1, self.total_steps) or self.is_line_due(time.monotonic()):
            self.told = time.monotonic()
            log.info(
                "step %d/%d  loss %.4f  gradient norm %.2f  learning rate %.2e  %.0f tokens/s%s",
                self.last_step,
                self.total_steps,
                record["loss"],
                record["gradient_norm"],
                record["learning_rate"],
                record["tokens_per_s"],
                "" if mfu is None else f"  MFU {mfu:.1%}",
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

    def slow_rank(self, rank: int, excess: float, steps: int) -> None:
        """Report a rank whose computing has taken longer than the median rank's; it does so itself."""
        if rank != self.world.rank:
            return
        told = f"rank {rank} on {node_name()} computes slower than the median rank, by {excess:.0%} over {steps} steps"
        log.warning("%s: the others wait for it; `shardline doctor` examines its host", told)
        write_event(self.paths, "slow-rank", rank=rank, host=node_name(), excess=round(excess, 3), steps=steps)

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

        Rank 0 writes it for all; its `seconds` are those since the start that it recorded, or since it was
        launched without one. With `is_own`, the error is one that only this rank can see, such as damaged rows: it
        writes the reason itself, before the others fail because it is gone, and rank 0 then adds no second one.
        """
        self.waiting.stop()
        self.line.close()
        self.heartbeat.stop()
        writes = self.world.is_first or (is_own and self.has_begun)
        if writes and self.end_by_another_rank() is None:
            seconds = round(start_age_s() if self.begun is None else time.monotonic() - self.begun, 3)
            name = "end" if self.has_begun else "no-start"
            told: dict[str, Any] = {} if self.log_file is None else {"log": f"logs/{self.log_file.name}"}
            step = self.last_step
            write_event(self.paths, name, step=step, reason=reason, exit_code=exit_code, seconds=seconds, **told)
        if self.stream is not None:
            self.stream.close()
            self.stream = None


def start_age_s() -> float:
    """Return the seconds since our launcher began to start this rank, its imports included, wherever they were made.

    From another launcher: those since this process was started.
    """
    began = started_by_launcher()
    return process_age_s() if began is None else uptime_s() - began
