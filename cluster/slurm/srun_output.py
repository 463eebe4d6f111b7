"""What srun writes on standard error: passed on line by line, and read for how its tasks began and ended.

Each task is the launcher of a host's ranks.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import IO

from cluster.machine import OUT_OF_MEMORY

BEGINS = "shardline: a task begins"  # what each task's shell writes first; not passed on
ENDED = re.compile(r"srun: error: (\S+): tasks? [\d,-]+: (.+)")
NO_LAUNCH = re.compile(r"srun: error: Task launch for .* failed on node ")
LOST_HOST = re.compile(r"srun: error: Node failure on ([^\s!]+)")
EXITED = re.compile(r"Exited with exit code (\d+)")
# by `scancel JOB.STEP`: what Slurm does by itself has a reason (DUE TO NODE FAILURE), or follows a task that failed
CANCELLED = re.compile(r"slurmstepd\S*: error: \*\*\* STEP \S+ ON \S+ CANCELLED AT \S+ \*\*\*")
BY_PERSON = "the step of the ranks was cancelled"
OWN_ERROR = re.compile(r"(?:srun|slurmstepd): (?:error|fatal): (.+)")
SIGNALS = {signal.strsignal(number): number.name for number in signal.Signals}  # srun writes C's text for a signal
LATER_S = 2.0  # a host's word of a launcher that was killed may come so much later than that of one which then failed
READ_S = 5.0  # that the last lines may take once srun has ended


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The word of a task that failed, or of a host that was lost.

    `told` is None if the task has told itself why; `code` is its exit code, None if it has none.
    """

    at: float
    told: str | None
    code: int | None = None


@dataclass
class SrunOutput:
    """Reads the standard error of one srun in a thread of its own, so that srun never waits for a reader."""

    stream: IO[bytes]
    has_begun: bool = False
    """Whether any task's shell has started."""
    is_incomplete: bool = False
    """Whether srun could not start the tasks of some host."""
    ended: list[Ended] = field(default_factory=list)
    task_ended: float | None = None
    """When srun first told of a task that failed, in seconds of the monotonic clock."""
    last_error: str = ""
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self) -> None:
        for line in self.stream:
            text = line.decode(errors="replace").rstrip()
            if text.endswith(BEGINS):  # with the task's number before it where the site sets SLURM_LABELIO
                self.has_begun = True
                continue
            self.look(text, time.monotonic())
            try:
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
            except OSError:  # the disk of the job's log is full: there is nowhere to tell it, and srun must go on
                continue

    def look(self, text: str, now: float) -> None:
        """Take note of a line."""
        if CANCELLED.match(text) and not self.ended:
            self.ended.append(Ended(at=now, told=BY_PERSON))
        elif match := ENDED.match(text):
            self.task_ended = now if self.task_ended is None else self.task_ended
            host, how = match.groups()
            exited = EXITED.fullmatch(how)
            self.ended.append(Ended(at=now, told=death(host, how), code=int(exited[1]) if exited else None))
        elif match := LOST_HOST.match(text):
            self.ended.append(Ended(at=now, told=f"{match[1]} was lost"))
        elif match := OWN_ERROR.match(text):
            self.last_error = match[1]
            self.is_incomplete = self.is_incomplete or NO_LAUNCH.match(text) is not None

    def finish(self) -> None:
        """Wait for the last lines."""
        self.thread.join(READ_S)

    @property
    def cause(self) -> str | None:
        """Return whose launcher was killed, or which host was lost, if that came first.

        The others failed because of it. Later deaths are those of tasks that Slurm ended because of the first.
        """
        if not self.ended:
            return None
        return next((one.told for one in self.ended if one.told and one.at - self.ended[0].at <= LATER_S), None)

    @property
    def first_code(self) -> int | None:
        """Return the exit code of the task that failed first, if it has one; srun then sends TERM to the others."""
        return self.ended[0].code if self.ended else None


def death(host: str, how: str) -> str | None:
    """Return how a signal ended a task; None for TERM, which Slurm sends, and for one that ended by itself."""
    name = SIGNALS.get(how.removesuffix(" (core dumped)"))
    launcher = f"the launcher of the ranks on {host} was killed"
    if how == "Out Of Memory":
        return f"{launcher}{OUT_OF_MEMORY}"
    return None if name in (None, "SIGTERM") else f"{launcher} by {name}"
