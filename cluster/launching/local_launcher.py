"""Start one process a rank on this machine, forward signals to all of them, and end with one exit code.

torchrun is not used for this: it turns every rank's exit code into 1 (75, "put the job back into the queue", is lost),
does not forward USR2, and kills ranks 30 s after TERM, while they may be saving.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from cluster.environment import World, child_environment, free_port, rank_variables
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ACTION
from cluster.launching.stop_request import SIGNALS
from cluster.terminal import erase_line

log = logging.getLogger(__name__)

GRACE_S = 10.0  # the time that the other ranks have to end by themselves after one has failed
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies: an orphaned rank would train on beside its successor."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_ranks(
    command: Sequence[str], size: int, variables: Mapping[str, str] | None = None, *, stopping: str = ""
) -> int:
    """Run `command` as `size` ranks; return one exit code for all, as `combined` chooses it.

    `variables` are added to the ranks' environment. A signal that asks to stop is forwarded to all ranks. If it comes
    before all are started, they are killed: they cannot agree on a step to stop at yet, and nothing is lost. A second
    Ctrl-C kills them at once. `stopping` is logged as soon as the signal comes: what the ranks do then.
    """
    port = free_port()
    ranks: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGKILL if is_impatient(asked) else number)

    old = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        while len(ranks) < size and not asked:
            ranks.append(start_rank(command, len(ranks), size, port, variables or {}))
        codes = wait_for(ranks, lambda: stopping if asked else "") if len(ranks) == size else [-asked[0]]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        erase_line(sys.stderr)  # a rank that was killed has left what it drew
        for number, handler in old.items():
            signal.signal(number, handler)
    return EXIT_INTERRUPTED if is_impatient(asked) else combined([code_of(code, asked) for code in codes])


def is_impatient(asked: Sequence[int]) -> bool:
    """Return whether Ctrl-C was pressed twice."""
    return asked.count(signal.SIGINT) > 1


def code_of(code: int, asked: Sequence[int]) -> int:
    """Return a rank's exit code; a rank that died of a forwarded signal had not installed its handler yet."""
    if -code in asked:
        return EXIT_INTERRUPTED if -code == signal.SIGINT else EXIT_STOPPED
    return code


def start_rank(
    command: Sequence[str], rank: int, size: int, port: int, variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    world = World(rank=rank, size=size, local_rank=rank, local_size=size, master=("127.0.0.1", port))
    environment = child_environment({**variables, **rank_variables(world), "OMP_NUM_THREADS": "1"})
    # a process group of its own: Ctrl-C reaches a rank once, through us
    return subprocess.Popen(command, env=environment, process_group=0, preexec_fn=die_with_parent)


def wait_for(ranks: Sequence[subprocess.Popen[bytes]], news: Callable[[], str] = str) -> list[int]:
    """Wait until all ranks have ended; after a failure, wait no longer than GRACE_S for the others.

    The first `news` that is not empty is logged: a signal's handler must not, as it may interrupt another log call.

    Returns the codes of the ranks that ended by themselves; the caller kills the rest, and they do not count.
    """
    deadline: float | None = None
    told = ""
    while None in [rank.poll() for rank in ranks]:  # a list: every rank must be polled to have a returncode
        if not told and (told := news()):
            log.info("%s", told)
        if deadline is None and any(failed(rank.returncode) for rank in ranks):
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for number, rank in enumerate(ranks):
        if failed(rank.returncode) and rank.returncode not in (
            EXIT_USER_ACTION,
            EXIT_INTERRUPTED,
        ):  # it has said so itself
            log.warning("rank %d ended with %s", number, spelled(rank.returncode))
    return [rank.returncode for rank in ranks if rank.returncode is not None]


def failed(code: int | None) -> bool:
    return code not in (None, EXIT_DONE, EXIT_STOPPED)


def spelled(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def combined(codes: Sequence[int]) -> int:
    """Return one exit code for all ranks: user action, then an interrupt, then a failure, then a stop, then done."""
    for code in (EXIT_USER_ACTION, EXIT_INTERRUPTED):
        if code in codes:
            return code
    if any(failed(code) for code in codes):
        return EXIT_FAILED
    return EXIT_STOPPED if EXIT_STOPPED in codes else EXIT_DONE
