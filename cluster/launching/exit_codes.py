"""How ranks have ended: each one's exit code in words, the first cause, and one exit code for all."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ACTION

KILLED = " was killed"
LATE = ("SIGSEGV", "SIGABRT")  # torch's own abort last


def is_impatient(asked: Sequence[int]) -> bool:
    """Return whether Ctrl-C was pressed twice."""
    return asked.count(signal.SIGINT) > 1


def code_of(code: int, asked: Sequence[int]) -> int:
    """Return a rank's exit code; a rank that died of a forwarded signal had not installed its handler yet."""
    if -code in asked:
        return EXIT_INTERRUPTED if -code == signal.SIGINT else EXIT_STOPPED
    return code


def failed(code: int | None) -> bool:
    return code not in (None, EXIT_DONE, EXIT_STOPPED)


def spelled(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def first_cause(causes: Sequence[str]) -> str | None:
    """Return the first cause that is likely one.

    A rank that was killed comes before one that failed, perhaps as it has lost that one; the LATE signals come last, as
    such ranks often end by them.
    """

    def place(cause: str) -> int:
        if cause.endswith(LATE):
            return 2 + LATE.index(cause.split()[-1])
        return 0 if KILLED in cause or cause.endswith(" was lost") else 1

    return min(causes, key=place, default=None)


def combined(codes: Sequence[int]) -> int:
    """Return one exit code for all ranks: user action, then an interrupt, then a failure, then a stop, then done."""
    for code in (EXIT_USER_ACTION, EXIT_INTERRUPTED):
        if code in codes:
            return code
    if any(failed(code) for code in codes):
        return EXIT_FAILED
    return EXIT_STOPPED if EXIT_STOPPED in codes else EXIT_DONE
