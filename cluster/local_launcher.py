"""Start one process a rank on this machine, pass signals on to all of them, and end together.

torchrun is not used for this: it turns every rank's exit code into 1 (75, 'put me back in the queue', is lost), passes
USR2 on to nobody, and kills ranks 30 s after TERM, while they may be saving.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from cluster.environment import World, child_environment, free_port, rank_variables
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ACTION
from cluster.stop_request import SIGNALS

log = logging.getLogger(__name__)

GRACE_S = 10.0  # what the other ranks have to end by themselves after one has failed
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies: an orphaned rank would train on against its successor."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_ranks(command: Sequence[str], size: int, variables: Mapping[str, str] | None = None) -> int:
    """Run `command` as `size` ranks; return the exit code that says most about what happened.

    `variables` are set in the ranks' environment. A signal that asks to stop reaches all ranks. While they are still
    being started it ends them: they cannot agree on a step to stop at, and have done nothing that would be lost. The
    second Ctrl-C is of a person who does not want to wait: it ends them at once.
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
        codes = wait_for(ranks) if len(ranks) == size else [-asked[0]]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        for number, handler in old.items():
            signal.signal(number, handler)
    return EXIT_INTERRUPTED if is_impatient(asked) else combined([code_of(code, asked) for code in codes])


def is_impatient(asked: Sequence[int]) -> bool:
    """Return whether a person has pressed Ctrl-C twice."""
    return asked.count(signal.SIGINT) > 1


def code_of(code: int, asked: Sequence[int]) -> int:
    """Return a rank's exit code; a rank that one of the signals has ended did not listen to it yet."""
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


def wait_for(ranks: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Wait until all ranks have ended; after a failure the others get a short grace, then they are killed.

    Ranks that were killed here because of another rank's failure do not count.
    """
    deadline: float | None = None
    while None in [rank.poll() for rank in ranks]:  # a list: every rank must be polled to have a returncode
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
    """Return one exit code for all ranks: what a person must mend or did, then failures, then a stop, then done."""
    for code in (EXIT_USER_ACTION, EXIT_INTERRUPTED):
        if code in codes:
            return code
    if any(failed(code) for code in codes):
        return EXIT_FAILED
    return EXIT_STOPPED if EXIT_STOPPED in codes else EXIT_DONE
