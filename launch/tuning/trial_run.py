"""One trial: a normal `shardline train` in its own folder, watched by its held-out losses, pruned by a STOP file."""

from __future__ import annotations

import enum
import logging
import math
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from cluster.config_loading import dump_yaml, validate
from cluster.disk.atomic_files import write_json, write_text
from cluster.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_STOPPED, ConfigError
from cluster.journal.records import read_events
from cluster.launching.local_launcher import die_with_parent
from cluster.launching.stop_request import SIGNALS
from cluster.paths import RunPaths
from launch.config import RunConfig
from launch.saved_config import absolute_values
from launch.tuning.space import placed
from training.plan import steps_of

log = logging.getLogger(__name__)

POLL_S = 0.2
STOPPING = "stopping after this step: saving a checkpoint; Ctrl-C again ends now"
EVALUATIONS = 8  # held-out losses of a trial: it can be pruned after each
ERROR_LINE = re.compile(r"^\d\d:\d\d:\d\d(?: \[[^\]]*\])? E (.*(?:\n  .*)*)$", re.MULTILINE)


class State(enum.Enum):
    """How a trial ended. UNFINISHED and KILLED ones stay open, and resume: KILLED ones at once."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    UNFINISHED = "unfinished"
    KILLED = "killed"

    @property
    def is_over(self) -> bool:
        return self not in (State.UNFINISHED, State.KILLED)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended, and why. `loss` is the last held-out loss, after `step` steps."""

    state: State
    loss: float | None = None
    step: int = 0
    reason: str = ""


@dataclass
class StopSignals:
    """Signals that ask `tune` to stop: passed on to the trial, which saves a checkpoint, and remembered."""

    asked: list[int] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked.append(number)
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    @property
    def is_interrupted(self) -> bool:
        return signal.SIGINT in self.asked

    @contextmanager
    def installed(self) -> Iterator[None]:
        old = {number: signal.signal(number, self.pass_on) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


@dataclass(frozen=True, kw_only=True)
class TrialRun:
    """The run of one trial. `command` trains the YAML that is added to it."""

    folder: Path
    trial: Any
    command: Sequence[str]

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.folder)

    @property
    def yaml(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    def train(self, signals: StopSignals, tell: Callable[[str], None]) -> Outcome:
        """Train, or resume, until the run is done, pruned, failed or stopped; return how it ended.

        A run that was done when `tune` was killed is not started again.
        """
        seen: dict[int, float] = {}
        pruned = self.watch(seen, tell)
        if ended_with(self.paths) == EXIT_DONE:
            return self.outcome(EXIT_DONE, seen)
        if pruned or signals.asked:
            return self.outcome(EXIT_STOPPED, seen, pruned=pruned)
        with self.log.open("ab") as stream:
            process = subprocess.Popen(
                [*self.command, str(self.yaml)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C reaches it once, through us
                preexec_fn=die_with_parent,
            )
        signals.process = process
        for number in signals.asked:  # one that came while the process was being started
            process.send_signal(number)
        is_told = False
        while process.poll() is None:
            time.sleep(POLL_S)
            if signals.asked and not is_told:
                is_told = True
                tell(STOPPING)
            if not pruned and self.watch(seen, tell):
                pruned = True
                self.paths.stop_request.touch()
        signals.process = None
        self.watch(seen, tell)
        return self.outcome(process.returncode, seen, pruned=pruned)

    def watch(self, seen: dict[int, float], tell: Callable[[str], None]) -> bool:
        """Report the new held-out losses to the study; return whether to prune the trial, from the second on."""
        found = {int(e["step"]): float(e["loss"]) for e in read_events(self.paths) if e["event"] == "validation"}
        new = {step: loss for step, loss in sorted(found.items()) if step not in seen}
        reported = self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        for step, loss in new.items():
            seen[step] = loss
            if not math.isfinite(loss):
                return True
            if step not in reported:
                self.trial.report(loss, step)
            tell(f"step {step}  held-out loss {loss:.4f}")
        is_warm = len(seen) > 1  # at the first, the learning rate has hardly been reached
        return bool(new) and is_warm and bool(self.trial.should_prune())

    def outcome(self, code: int, seen: Mapping[int, float], *, pruned: bool = False) -> Outcome:
        """Return how the trial ended, from the exit code of its training and its held-out losses."""
        step = max(seen, default=0)
        loss = seen.get(step)
        if loss is not None and not math.isfinite(loss):
            return Outcome(state=State.FAILED, step=step, reason=f"diverged: held-out loss {loss} at step {step}")
        if code == EXIT_DONE and loss is None:
            return Outcome(state=State.FAILED, reason=f"it wrote no held-out loss; see {self.log}")
        if code == EXIT_DONE:
            return Outcome(state=State.COMPLETE, loss=loss, step=step)
        if code == EXIT_STOPPED and pruned:
            told = f"stopped at step {step}: its held-out losses are above the median of the other trials'"
            return Outcome(state=State.PRUNED, loss=loss, step=step, reason=told)
        if code in (EXIT_STOPPED, EXIT_INTERRUPTED):
            return Outcome(state=State.UNFINISHED, loss=loss, step=step, reason="stopped; resumes from its checkpoint")
        if code < 0:
            return Outcome(state=State.KILLED, loss=loss, step=step, reason=f"its training was ended by signal {-code}")
        state = State.UNFINISHED if could_not_save(self.paths) else State.FAILED
        return Outcome(state=state, loss=loss, step=step, reason=self.failure(code))

    def failure(self, code: int) -> str:
        """Return the error that ended the training, from its log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        told = ERROR_LINE.findall(text)
        return " ".join(told[-1].split()) if told else f"exit code {code}; see {self.log}"

    def write(self, values: Mapping[str, Any]) -> None:
        """Write the run's YAML: whole, so that a person can train it too."""
        write_text(self.yaml, dump_yaml(values))

    def write_outcome(self, outcome: Outcome, chosen: Mapping[str, Any]) -> None:
        """Write into the run's folder what the study thinks of it."""
        record = {"trial": self.trial.number, "state": outcome.state.value, "held_out_loss": outcome.loss}
        if self.folder.is_dir():
            write_json(
                self.folder / "trial.json",
                {**record, "step": outcome.step, "reason": outcome.reason, "parameters": dict(chosen)},
            )


def ended_with(paths: RunPaths) -> int | None:
    """Return the exit code of the newest attempt of a run, if it is over and has recorded one."""
    events = [event for event in read_events(paths) if event["event"] in ("launch", "start", "end", "no-start")]
    return int(events[-1]["exit_code"]) if events and events[-1]["event"] == "end" else None


def could_not_save(paths: RunPaths) -> bool:
    """Return whether the newest attempt ended with its checkpoints, as on a full disk: its values are not to blame."""
    ends = [event for event in read_events(paths) if event["event"] == "end"]
    return bool(ends) and str(ends[-1].get("reason")).startswith("CheckpointError")


def trial_values(run: RunConfig, chosen: Mapping[str, Any], folder: Path, rows: int) -> dict[str, Any]:
    """Return the configuration of a trial: the run's, with the chosen values, on the same shards, in its own folder.

    It saves often enough to be pruned, and keeps one checkpoint; neither changes a loss. Raises ConfigError if the
    chosen values do not go together.
    """
    values = placed(absolute_values(run), chosen)
    every = min(run.train.save_every_steps, math.ceil(steps_of(run.train, rows) / EVALUATIONS))
    values |= {"name": f"{run.name}-{folder.name}", "folder": str(folder.absolute())}
    values["train"] |= {"save_every_steps": every, "keep_last": 1, "keep_every_steps": None}
    try:
        validate(RunConfig, values, source=folder.name)
    except ConfigError as error:
        raise ConfigError(" ".join(str(error).split())) from None
    return values
