"""One srun as a child process: signals for its ranks, how it ended, and its end if it waits for ranks that are gone."""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from cluster.environment import child_environment
from cluster.errors import EXIT_STOPPED
from cluster.slurm.srun_output import SrunOutput

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
GONE_S = 30.0  # that Slurm must not list a step for, before its srun is ended
LOOK_S = 30.0  # between two questions whether it does: hundreds of jobs may ask
AGAIN_S = 10.0  # after which ranks are asked to stop again: while they start, they cannot remember it
LEFT_S = 120.0  # that srun has to end the other ranks after one has failed: Slurm's KillWait is 30 by default
KILL_S = 2.0  # that an srun has to end after TERM: it may wait half a minute for a step that is gone
POLL_S = 0.2
ENDED_HERE = "Slurm no longer listed the ranks, as after their host was cut off"


@dataclass(frozen=True, kw_only=True)
class StepEnd:
    """How an srun ended: its exit code, 128 + N if signal N ended it, and why, if that is known.

    `is_own` tells that srun itself failed, before all tasks had begun: the code, even 0 or 2, is not one of the ranks.
    """

    code: int
    is_own: bool = False
    cause: str | None = None


@dataclass
class StopSignals:
    """Signals that ask the job to stop. The ranks get them as USR2, through srun: at a TERM it would kill them.

    A second Ctrl-C ends srun at once.
    """

    asked: list[int] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def remember(self, number: int, frame: FrameType | None) -> None:
        self.asked.append(number)
        self.pass_on()

    def pass_on(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM if self.asked.count(signal.SIGINT) > 1 else signal.SIGUSR2)

    @property
    def is_interrupted(self) -> bool:
        return signal.SIGINT in self.asked

    @contextmanager
    def installed(self) -> Iterator[None]:
        old = {number: signal.signal(number, self.remember) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


@dataclass
class StepWatch:
    """Tells when Slurm has not listed a step for `gone_s` that it had listed before."""

    gone_s: float
    was_listed: bool = False
    missing_since: float | None = None

    def look(self, is_listed: bool | None, now: float) -> bool:
        """Take one look at Slurm's list, None if Slurm did not answer; return whether the step is gone."""
        if is_listed is None:
            return False
        if is_listed or not self.was_listed:
            self.was_listed = self.was_listed or is_listed
            self.missing_since = None
            return False
        self.missing_since = now if self.missing_since is None else self.missing_since
        return now - self.missing_since >= self.gone_s


@dataclass
class LeftRanks:
    """Tells when ranks are to be killed that srun should have ended: `within_s` after one failed, and so again."""

    within_s: float
    told: float | None = None

    def look(self, failed: float | None, now: float) -> bool:
        """Return whether they are to be killed now; `failed` is when the first rank did, None while none has."""
        if failed is None or now - (failed if self.told is None else self.told) < self.within_s:
            return False
        self.told = now
        return True


def run_step(
    command: Sequence[str],
    variables: Mapping[str, str | None],
    signals: StopSignals,
    is_listed: Callable[[], bool | None],
    kill: Callable[[], None],
    patience: float,
) -> StepEnd:
    """Run srun to its end.

    If ranks end while their host is cut off, srun never hears of it and waits for ever, though Slurm knows that the
    step is over: srun is then ended from here. `is_listed` asks Slurm about the step. If a rank fails while Slurm's
    controller is away, srun cannot end the others, and does not try again: `kill` then asks Slurm to.
    """
    process, output = start(command, variables)
    signals.process = process
    cause = None
    watch, left = StepWatch(GONE_S * patience), LeftRanks(max(1.0, LEFT_S * patience))
    look_s = max(POLL_S, LOOK_S * patience)
    look_at = time.monotonic() + POLL_S
    again_at = time.monotonic() + AGAIN_S * patience
    try:
        while not has_ended(process):
            now = time.monotonic()
            if signals.asked and now >= again_at:
                signals.pass_on()
                again_at = now + max(POLL_S, AGAIN_S * patience)
            if left.look(output.task_ended, now):
                log.warning(
                    "a host's task has failed, and srun has not ended the others within %.0f s: killing", left.within_s
                )
                kill()
            if now < look_at:
                continue
            if watch.look(is_listed(), time.monotonic()):
                log.warning("Slurm says that the ranks are gone, but srun waits for them: ending srun")
                cause = ENDED_HERE
                end(process)
            look_at = time.monotonic() + (look_s if watch.was_listed and watch.missing_since is None else POLL_S * 5)
    finally:
        signals.process = None
        end(process)
    return ended(process, output, cause)


def start(command: Sequence[str], variables: Mapping[str, str | None]) -> tuple[subprocess.Popen[bytes], SrunOutput]:
    """Start an srun in a process group of its own: Ctrl-C does not reach it, and does not kill the ranks."""
    process = subprocess.Popen(
        command, env=child_environment(variables), process_group=0, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    return process, SrunOutput(process.stderr)


def ended(process: subprocess.Popen[bytes], output: SrunOutput, cause: str | None = None) -> StepEnd:
    """Return how an srun ended that has."""
    output.finish()
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    if code == EXIT_STOPPED and output.first_code:  # the others ended by the TERM that followed
        code = output.first_code
    if not output.has_begun or (output.is_incomplete and code):
        return StepEnd(code=code, is_own=True, cause=output.last_error or f"srun ended with {code}")
    return StepEnd(code=code, cause=output.cause or cause)


def has_ended(process: subprocess.Popen[bytes], within_s: float = POLL_S) -> bool:
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def end(process: subprocess.Popen[bytes]) -> None:
    """End an srun that has lost its ranks: TERM, then KILL."""
    if process.poll() is not None:
        return
    process.terminate()
    if not has_ended(process, KILL_S):
        process.kill()
        process.wait()
