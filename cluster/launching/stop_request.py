"""A request to stop, from a signal or a file, that all ranks act on at the same step."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

log = logging.getLogger(__name__)

NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # Slurm's; USR2 is ours, as NCCL may take USR1
SIGNALS = (*NOTICES, signal.SIGINT)


def ignore_signals() -> None:
    """Ignore all notices: a rank cannot act on them before StopFlag.install, and has acted when it ends.

    When the first rank has ended with 75 or 2, srun sends TERM to the others; dying of it, as a Python does that is
    starting or ending, turns the job's exit code into 143.
    """
    for number in NOTICES:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def remembered_signals() -> Iterator[list[int]]:
    """Remember the signals that ask to stop, where there are no ranks to pass them on to."""
    asked: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    old = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


MARGIN_S = 30.0  # for what was not measured: a first save, and the ranks' end


class StopFlag:
    """Set by TERM, USR1, USR2, INT, the run's STOP file or the end of the allocation; read by all ranks together.

    The handler only remembers: saving inside a handler could interrupt a collective half way. `ends_at` is when the
    nodes are taken away, in seconds since 1970. The time from one question to the next is that of a step, with the
    part of a save for which training waits; `save_s` tells how long a save has taken at most until its checkpoint was
    there. Only the first rank looks for the file (`looks_for_file`): at every step, a thousand ranks would keep the
    shared disk busy with it. Signals and the end of the allocation count on any rank.
    """

    def __init__(self, request: Path, ends_at: float | None = None, *, looks_for_file: bool = True) -> None:
        self.request, self.looks_for_file = request, looks_for_file
        self.reason: str | None = None
        self.signal = 0
        self.asked: float | None = None
        self.longest_s = 0.0
        self.was_resumed = False
        self.save_s: Callable[[], float] = lambda: 0.0
        self.deadline = None if ends_at is None else time.monotonic() + ends_at - time.time()

    def install(self) -> None:
        """Take over the signals. A second INT ends the process at once, for a person who means it."""
        for number in SIGNALS:
            signal.signal(number, self.remember)
        signal.signal(signal.SIGCONT, self.resume)

    def resume(self, number: int, frame: FrameType | None) -> None:
        """Know that this process may have been stopped: `scontrol suspend` takes no time from the time limit."""
        self.was_resumed = True

    def remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason:
            raise KeyboardInterrupt
        if self.reason is None:
            self.signal, self.reason = number, spelled(number)

    def agreed(self, all_reduce_max: Callable[[int], int]) -> bool:
        """Return whether any rank wants to stop. Collective: every rank gets the same answer.

        What is agreed on says which signal it was, as one rank may have it a step before the others.
        """
        if self.looks_for_file and self.reason is None and self.request.exists():
            self.reason = f"{self.request} exists"
        self.reason = self.reason or self.out_of_time(time.monotonic())
        wanted = all_reduce_max(1 + self.signal if self.reason else 0)
        if wanted:
            others = spelled(wanted - 1) if wanted > 1 else "another rank was asked to stop"
            self.reason = self.reason or others
            log.info("stopping after this step: saving a checkpoint (%s)", self.reason)
        return wanted > 0

    def out_of_time(self, now: float) -> str | None:
        """Return a reason to stop if another step, and then a save, might not fit into the allocation.

        A save may still be under way then, for which the last one has to wait.
        """
        took_s = 0.0 if self.asked is None else now - self.asked
        self.asked = now
        if self.was_resumed:  # that is no step's time, as far as it exceeds the longest one
            paused_s, self.was_resumed = max(0.0, took_s - self.longest_s), False
            self.deadline = None if self.deadline is None else self.deadline + paused_s
        else:
            self.longest_s = max(self.longest_s, took_s)
        needed_s = 2 * (self.longest_s + self.save_s()) + MARGIN_S
        if self.deadline is None or now + needed_s < self.deadline:
            return None
        return f"the allocation ends in {self.deadline - now:.0f} s; a step and a save may need {needed_s:.0f} s"


def spelled(number: int) -> str:
    return f"signal {signal.Signals(number).name}"
