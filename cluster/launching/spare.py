"""A spare process beside the ranks of a host: it has imported what they import, and the next ones are forked from it.

Most of the start of a small model is importing torch, transformers and DeepSpeed. The spare process is the same command
as the ranks, with SPARE in its environment; what it does is in cluster/launching/forking.py and launch/spare.py. Ranks
that are forked from it become children of this process, as those that it starts itself are.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from cluster.environment import SPARE, child_environment, patience, rank_names, read_host_place, threads_of_rank
from cluster.launching.local_launcher import die_with_parent
from cluster.machine import free_memory_bytes

log = logging.getLogger(__name__)

CHECK, FORK, USABLE = b"check", b"fork", b"usable"
ANSWER_S = 10.0  # that the spare has for an answer: it only looks at files, or forks
DUE_S = 30.0  # after the ranks
END_S = 1.0
MOST_BYTES = 4096  # of an answer
PR_SET_CHILD_SUBREAPER = 36
LEAST_FREE_BYTES = 2e9  # without it, no spare process: it takes about 0.5 GB
# torch then counts GPUs without starting CUDA, which a process that is forked could not use; DeepSpeed sets it as well
IN_SPARE = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


@dataclass
class ForkedRank:
    """A rank that was forked from the spare, a child of this process, as the launcher handles a subprocess.Popen.

    A signal's handler may ask for the same rank while this process is about to hear of its end: only one of them waits
    for it, as a child can be waited for once.
    """

    pid: int
    returncode: int | None = None
    waiting: threading.Lock = field(default_factory=threading.Lock)

    def poll(self) -> int | None:
        if self.returncode is None and self.waiting.acquire(blocking=False):
            try:
                if self.returncode is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
                    self.returncode = os.waitstatus_to_exitcode(found[1])
            finally:
                self.waiting.release()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@dataclass
class Spare:
    """The spare process of this host: started half a minute after the ranks, and asked for those of later attempts.

    By then most ranks take steps. That is not looked up: the run's disk may hang, and the launcher must not.
    Whatever is wrong with the process is told, and ranks are then started afresh.
    """

    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    control: socket.socket | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    is_ready: bool = False
    is_refused: bool = False
    waiting_since: float | None = None

    def tend(self) -> bool:
        """Start the process once it is due, and hear whether it can be used; return whether it was found dead.

        Called while the ranks work. Where memory is short, it is killed before them.
        """
        if self.is_ready and self.process is not None and self.process.poll() is not None:
            self.refuse(b"")
            return True
        if not self.is_ready and not self.is_refused:
            self.prepare()
        return False

    def prepare(self) -> None:
        if self.control is None:
            now = time.monotonic()
            self.waiting_since = now if self.waiting_since is None else self.waiting_since
            if now - self.waiting_since >= DUE_S * patience():
                self.start()
            return
        try:
            answer = self.control.recv(MOST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            answer = b""
        if answer != USABLE:
            self.refuse(answer)
            return
        self.is_ready = True
        self.control.settimeout(ANSWER_S)
        log.info("a spare process is ready for quick restarts")

    def start(self) -> None:
        try:
            if (free := free_memory_bytes()) < LEAST_FREE_BYTES:
                self.refuse(f"only {free / 1e9:.1f} GB of memory is free".encode())
                return
            self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.control.setblocking(False)  # until it has answered: the launcher looks after its ranks meanwhile
            place = read_host_place()
            self.environment = child_environment(threads_of_rank((place and place.ranks) or 1))
            with theirs:
                self.process = subprocess.Popen(
                    self.command,
                    env={**IN_SPARE, **self.environment, SPARE: str(theirs.fileno())},
                    pass_fds=[theirs.fileno()],
                    process_group=0,
                    preexec_fn=partial(die_with_parent, os.getpid()),
                )
        except (OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
            self.refuse(f"{type(error).__name__}: {error}".encode())  # whatever it is, the ranks go on

    def refuse(self, why: bytes) -> None:
        """Do without a spare in this attempt; the next one tries again, as memory may be free by then."""
        self.end()
        self.is_refused = True
        told = why.decode(errors="replace") or "it has ended"
        log.info("no spare process for quick restarts here: %s", told)

    def is_usable(self, environment: Mapping[str, str]) -> bool:
        """Return whether a rank with this environment may be forked now; tell why not where a spare was there."""
        if self.control is None or not self.is_ready:
            self.is_refused, self.waiting_since = False, None  # another attempt begins
            return False
        why = self.changed_variable(environment) or self.answer_to_check(self.control)
        if why:
            log.info("the ranks are started afresh, not from the spare process: %s", why)
            self.end()  # the next attempt gets another one
        return not why

    def changed_variable(self, environment: Mapping[str, str]) -> str:
        """Return in words which variable differs from those that the libraries were imported with."""
        own = rank_names()
        names = {
            name for name in {*environment, *self.environment} if environment.get(name) != self.environment.get(name)
        }
        changed = sorted(name for name in names if name not in own)
        return f"the environment has changed: {', '.join(changed)}" if changed else ""

    def answer_to_check(self, control: socket.socket) -> str:
        try:
            control.send(CHECK)
            answer = control.recv(MOST_BYTES)
        except OSError as error:
            return f"it does not answer ({error})"
        return "" if answer == USABLE else answer.decode(errors="replace") or "it has ended"

    def fork(self, environment: Mapping[str, str]) -> ForkedRank | None:
        """Fork a rank with this environment; None if that failed, which is told."""
        if self.control is None:
            return None
        try:
            ours, theirs = socket.socketpair()
            with ours, adopting_orphans():
                ours.settimeout(ANSWER_S)
                with theirs:
                    socket.send_fds(self.control, [FORK], [theirs.fileno()])
                rank = ForkedRank(int(ours.recv(MOST_BYTES)))
                with suppress(OSError):  # it has ended at once: its exit code tells more
                    ours.sendall(json.dumps(dict(environment)).encode())
                return rank
        except (OSError, ValueError) as error:  # a rank that was forked ends by itself: nothing more comes from here
            log.warning("the spare process has forked no rank: %s", error)
            self.end()
            return None

    def end(self) -> None:
        """End the process, if there is one; ranks that were forked from it live on."""
        if self.control is not None:
            self.control.close()
        if self.process is not None:
            self.process.kill()
            with suppress(subprocess.TimeoutExpired):  # it may hang in a disk, which nothing ends
                self.process.wait(END_S)
        self.process = self.control = self.waiting_since = None
        self.is_ready = False


@contextmanager
def spare_for(command: Sequence[str], *, restart: bool) -> Iterator[Spare | None]:
    """Have a spare process beside the ranks, if they are to be restarted."""
    spare = Spare(command) if restart else None
    try:
        yield spare
    finally:
        if spare is not None:
            spare.end()


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Become the parent of processes below this one whose parent ends, as the one between spare and rank does."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)
