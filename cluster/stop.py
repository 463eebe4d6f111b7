"""A wish to stop, from a signal or a file, that all ranks act on at the same step."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)  # USR2 is Slurm's notice: NCCL may take USR1


def ignore_signals() -> None:
    """Take neither TERM nor USR2: a rank cannot act on them before StopFlag.install, and has acted when it ends.

    When the first rank has ended with 75 or 2, srun sends TERM to the others; dying of it, as a Python does that is
    starting or ending, turns the job's exit code into 143.
    """
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


class StopFlag:
    """Set by TERM, USR2, INT or the run's STOP file; read by all ranks together.

    The handler only remembers: saving inside a handler could interrupt a collective half way.
    """

    def __init__(self, request: Path) -> None:
        self.request = request
        self.reason: str | None = None

    def install(self) -> None:
        """Take over the signals. A second INT ends the process at once, for a person who means it."""
        for number in SIGNALS:
            signal.signal(number, self.remember)

    def remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason:
            raise KeyboardInterrupt
        self.reason = self.reason or f"signal {signal.Signals(number).name}"

    def agreed(self, all_reduce_max: Callable[[int], int]) -> bool:
        """Return whether any rank wants to stop. Collective: every rank gets the same answer."""
        if self.reason is None and self.request.exists():
            self.reason = f"{self.request} exists"
        wanted = all_reduce_max(1 if self.reason else 0) == 1
        if wanted:
            self.reason = self.reason or "another rank was asked to stop"
        return wanted
