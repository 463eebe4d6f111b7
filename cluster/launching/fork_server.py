"""The fork server of a host: a process that has imported what its ranks import, and that they are forked from.

Most of the start of a small model is importing torch, transformers and DeepSpeed. On a host without GPUs one process
does that for all ranks, the first ones too; beside GPUs it serves those of later attempts. The server is the same
command as the ranks, with FORK_SERVER in its environment; what it does is in cluster/launching/forking.py and
launch/fork_server.py. Ranks that are forked from it become children of this process, as those that it starts itself.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from cluster.environment import (
    FORK_SERVER,
    child_environment,
    gpu_count,
    patience,
    rank_names,
    read_host_place,
    threads_of_rank,
)
from cluster.launching.local_launcher import die_with_parent
from cluster.machine import free_memory_bytes
from cluster.progress import Waiting

log = logging.getLogger(__name__)

AT_ONCE, AT_LEISURE = b"at once", b"at leisure"  # how it is to import
CHECK, FORK, USABLE = b"check", b"fork", b"usable"
ANSWER_S = 10.0  # that the server has for an answer: it only looks at files, or forks
DUE_S = 30.0  # after the ranks, where those are started without it
LONGEST_START_S = 600.0  # that ranks wait for it: imports may come from a slow disk
END_S = 1.0
MOST_BYTES = 4096  # of an answer
IMPORTING = "importing torch, transformers and DeepSpeed"
PR_SET_CHILD_SUBREAPER = 36
LEAST_FREE_BYTES = 2e9  # without it, none beside ranks: it takes about 0.5 GB. Ranks that are forked share that
# torch then counts GPUs without starting CUDA, which a process that is forked could not use; DeepSpeed sets it as well
IN_FORK_SERVER = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


@dataclass
class ForkedRank:
    """A rank that was forked from the server, a child of this process, as the launcher handles a subprocess.Popen.

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
class ForkServer:
    """The fork server of this host.

    Where it `comes_first`, ranks wait until it has imported, and all of them are forked from it. Else the first ranks
    are started without it; it is started half a minute after them, when most take steps, and serves later attempts.
    That they do is not looked up: the run's disk may hang, and the launcher must not.
    Whatever is wrong with the process is told, and ranks are then started without it.
    """

    command: Sequence[str]
    ranks: int = 1
    comes_first: bool = False
    is_shown: bool = True
    """Whether a person is shown what is waited for."""
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
            self.end()
            self.is_refused = True
            log.info("the fork server has ended; the ranks continue without it")
            return True
        if self.is_ready or self.is_refused:
            return False
        if self.control is None:
            now = time.monotonic()
            self.waiting_since = now if self.waiting_since is None else self.waiting_since
            if now - self.waiting_since >= DUE_S * patience():
                self.start(AT_LEISURE)
        else:
            self.hear(self.control)
        return False

    def start(self, how: bytes) -> None:
        try:
            if how == AT_LEISURE and (free := free_memory_bytes()) < LEAST_FREE_BYTES:
                self.refuse(f"only {free / 1e9:.1f} GB of memory is free".encode())
                return
            self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.control.setblocking(False)  # until it has answered: the launcher looks after its ranks meanwhile
            self.environment = child_environment(threads_of_rank(self.ranks))
            with theirs:
                self.process = subprocess.Popen(
                    self.command,
                    env={**IN_FORK_SERVER, **self.environment, FORK_SERVER: str(theirs.fileno())},
                    pass_fds=[theirs.fileno()],
                    process_group=0,
                    preexec_fn=partial(die_with_parent, os.getpid()),
                )
            self.control.send(how)
        except (OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
            self.refuse(f"{type(error).__name__}: {error}".encode())  # whatever it is, the ranks go on

    def hear(self, control: socket.socket) -> None:
        """Hear whether the process can be used, if it has said so."""
        try:
            answer = control.recv(MOST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            answer = b""
        if answer != USABLE:
            self.refuse(answer)
            return
        self.is_ready = True
        control.settimeout(ANSWER_S)
        if not self.comes_first:
            log.info("a fork server is ready for quick restarts")

    def refuse(self, why: bytes) -> None:
        """Do without a server in this attempt; the next one tries again, as memory may be free by then."""
        self.end()
        self.is_refused = True
        told = why.decode(errors="replace") or "it has ended"
        log.info("no fork server, so each rank imports for itself when it starts: %s", told)

    def is_usable(self, environment: Mapping[str, str], is_over: Callable[[], bool]) -> bool:
        """Return whether a rank with this environment may be forked now.

        Where the server comes first, one is started and waited for, unless `is_over` says that no ranks are wanted.
        """
        if self.is_current(environment):
            log.info("the ranks are forked from the fork server, which has everything imported")
            return True
        self.is_refused, self.waiting_since = False, None  # another attempt begins
        if not self.comes_first:
            return False
        if self.control is None:
            self.start(AT_ONCE)
        self.wait(is_over)
        return self.is_current(environment)

    def is_current(self, environment: Mapping[str, str]) -> bool:
        """Return whether the server is ready, and what it has imported is as it was; tell what is not, and end it."""
        if self.control is None or not self.is_ready:
            return False
        why = self.changed_variable(environment) or self.answer_to_check(self.control)
        if why:
            log.info("no rank can be forked from the fork server any more: %s", why)
            self.end()
        return not why

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Wait until the process can be used, or is refused."""
        deadline = time.monotonic() + LONGEST_START_S
        with Waiting(IMPORTING, is_shown=self.is_shown):
            while self.control is not None and not self.is_ready and not is_over():
                time.sleep(0.02)
                if time.monotonic() > deadline:
                    self.refuse(f"it has not imported everything within {LONGEST_START_S:.0f} s".encode())
                else:
                    self.hear(self.control)

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
        except TimeoutError:
            return f"it has not answered for {ANSWER_S:.0f} s"
        except OSError:
            return "it has ended"
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
                answer = ours.recv(MOST_BYTES)
                if not answer:
                    raise OSError("it has ended, or could have no more processes or memory")
                rank = ForkedRank(int(answer))
                with suppress(OSError):  # it has ended at once: its exit code tells more
                    ours.sendall(json.dumps(dict(environment)).encode())
                return rank
        except (OSError, ValueError) as error:  # a rank that was forked ends by itself: nothing more comes from here
            log.warning("the fork server has forked no rank: %s", error)
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
def fork_server_for(command: Sequence[str], ranks: int, *, restart: bool) -> Iterator[ForkServer | None]:
    """Have a fork server beside the ranks of this host, if one saves an import: of several ranks, or of later ones.

    Beside GPUs the first ranks are not forked: what libraries do to a GPU while they are imported is not known of all.
    """
    place = read_host_place()
    comes_first, is_shown = gpu_count() == 0, place is None or place.number == 0
    server = ForkServer(command, ranks, comes_first, is_shown) if restart or (comes_first and ranks > 1) else None
    try:
        yield server
    finally:
        if server is not None:
            server.end()


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Become the parent of processes below this one whose parent ends, as the one between server and rank does."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)
