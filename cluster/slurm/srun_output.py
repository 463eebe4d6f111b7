"""What srun writes on standard error: passed on line by line, and read for how its ranks began and ended."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import IO

BEGINS = "shardline: a task begins"  # what each task's shell writes first; not passed on
ENDED = re.compile(r"srun: error: (\S+): (tasks?) ([\d,-]+): (.+)")
NO_LAUNCH = re.compile(r"srun: error: Task launch for .* failed on node ")
LOST_HOST = re.compile(r"srun: error: Node failure on ([^\s!]+)")
OWN_ERROR = re.compile(r"(?:srun|slurmstepd): (?:error|fatal): (.+)")
SIGNALS = {signal.strsignal(number): number.name for number in signal.Signals}  # srun writes C's text for a signal
ABORTED = "killed by SIGABRT"
LATER_S = (
    2.0  # a host's word of a rank that a signal ended may come so much later than that of a rank which then failed
)
READ_S = 5.0  # that the last lines may take once srun has ended


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The word of ranks that failed, or of a host that was lost. `told` is None if the ranks themselves tell why."""

    at: float
    told: str | None


@dataclass
class SrunOutput:
    """Reads the standard error of one srun in a thread of its own, so that srun never waits for a reader."""

    stream: IO[bytes]
    has_begun: bool = False
    """Whether any task's shell has started."""
    is_incomplete: bool = False
    """Whether srun could not start the tasks of some host."""
    ended: list[Ended] = field(default_factory=list)
    rank_ended: float | None = None
    """When srun first told of a rank that failed, in seconds of the monotonic clock."""
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
        if match := ENDED.match(text):
            self.rank_ended = now if self.rank_ended is None else self.rank_ended
            self.ended.append(Ended(at=now, told=death(*match.groups())))
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
        """Return which rank was killed, or which host was lost, if that came first: the others failed because of it.

        Later deaths are those of ranks that Slurm ended because of the first. torch ends a rank that has lost another
        one by SIGABRT, within a second: that is a cause only if no word came before it.
        """
        if not self.ended:
            return None
        early = [one.told for one in self.ended if one.told and one.at - self.ended[0].at <= LATER_S]
        return next((told for told in early if not told.endswith(ABORTED)), self.ended[0].told)


def death(host: str, noun: str, tasks: str, how: str) -> str | None:
    """Return how a signal ended ranks; None for TERM, which Slurm sends, and for ranks that ended by themselves."""
    name = SIGNALS.get(how.removesuffix(" (core dumped)"))
    ranks = f"{noun.replace('task', 'rank')} {tasks} on {host} {'was' if noun == 'task' else 'were'}"
    if how == "Out Of Memory":
        return f"{ranks} killed: out of memory, beyond what the job asked for"
    return None if name in (None, "SIGTERM") else f"{ranks} killed by {name}"
