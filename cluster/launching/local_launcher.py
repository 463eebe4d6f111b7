"""Start one process a rank on this machine, forward signals to all of them, and end with one exit code.

torchrun is not used for this: it turns every rank's exit code into 1 (75, "put the job back into the queue", is lost),
does not forward USR2, and kills ranks 30 s after TERM, while they may be saving.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Protocol

from cluster.environment import CAUSES, STARTED, child_environment, threads_of_rank
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ACTION, ClusterError
from cluster.launching.exit_codes import code_of, combined, failed, first_cause, is_impatient, spelled
from cluster.launching.rank_cause import causes_of, file_for_causes, path_of
from cluster.launching.stop_request import NOTICES, SIGNALS
from cluster.machine import OUT_OF_MEMORY, hold_port, host_name, out_of_memory_kills
from cluster.network.world import World, rank_variables
from cluster.processes import uptime_s
from cluster.terminal import erase_line

log = logging.getLogger(__name__)

GRACE_S = 10.0  # the time that the other ranks have to end by themselves after one has failed
STOP_S = 60.0  # the same after another host has ended with 75: the last save is over there. Less than hosts wait
KILL_S = 60.0  # that ranks have to end once they are killed; the kernel may hold one in a call to a driver or a disk
AGAIN_S = 5.0  # after which ranks are asked to stop again: one that is starting does not remember it
PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux to kill this process when its parent dies: an orphaned rank would train on beside its successor.

    Where `parent` is given, this process ends at once if that has died before it could ask.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(EXIT_FAILED)


@dataclass(frozen=True, kw_only=True)
class Seats:
    """Which ranks of a world of `size` this host has: those from `first` on. `master` is where all of them meet.

    `elsewhere` returns the exit code that another host of the world has ended with, None while there is none. Signals
    that ask to stop are added to `asked`.
    """

    first: int
    size: int
    master: tuple[str, int]
    elsewhere: Callable[[], int | None] = lambda: None
    asked: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RankNews:
    """Who is told what of the ranks.

    `stopping` is logged as soon as a signal asks them to stop; `log_of` tells where a rank's own log is, and those of
    all ranks for `*`; `note_cause` is called with the rank that failed first, if a signal of somebody else has killed
    it or it has said why, once all have ended, and returns whether it has recorded that. `host` is Slurm's name of this
    host, in a job of Slurm.
    """

    stopping: str = ""
    log_of: Callable[[int | str], Path] | None = None
    note_cause: Callable[[str], bool | None] = lambda cause: None
    host: str = ""


class Rank(Protocol):
    """A rank's process: the part of subprocess.Popen that the launcher uses."""

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def send_signal(self, number: int, /) -> None: ...

    def kill(self) -> None: ...


class ServerProcess(Protocol):
    """A process that has imported what ranks import, and that ranks can be forked from: see fork_server.py."""

    def tend(self) -> bool:
        """Start it when it is time; return whether it was found dead. Called again and again while ranks work."""
        ...

    def is_usable(self, environment: Mapping[str, str], is_over: Callable[[], bool]) -> bool:
        """Return whether ranks with such an environment may be forked from it; it may wait until `is_over`."""
        ...

    def fork(self, environment: Mapping[str, str]) -> Rank | None:
        """Return a rank with this environment; None if there is none, and one must be started."""
        ...


def run_ranks(
    command: Sequence[str],
    size: int,
    variables: Mapping[str, str] | None = None,
    *,
    seats: Seats | None = None,
    news: RankNews | None = None,
    server: ServerProcess | None = None,
) -> int:
    """Run `command` as `size` ranks; return one exit code for all, as `combined` chooses it.

    Without `seats` they are the whole world. After a failure on another host, these are ended as after one of theirs.
    `variables` are added to the ranks' environment. If `server` is usable, the ranks are forked from it. A signal that
    asks to stop is forwarded to all ranks. If it comes before all are started, they are killed: they cannot agree on a
    step to stop at yet, and nothing is lost. A second Ctrl-C kills them at once.
    """
    news = RankNews() if news is None else news
    if seats is not None:
        return run_seated(command, variables or {}, LocalRanks(seats, news, server=server), size)
    with hold_port() as held:  # until rank 0 listens there: it imports for seconds first
        seats = Seats(first=0, size=size, master=("127.0.0.1", held.getsockname()[1]))
        return run_seated(command, variables or {}, LocalRanks(seats, news, server=server), size)


def run_seated(command: Sequence[str], variables: Mapping[str, str], local: LocalRanks, size: int) -> int:
    """Run `command` as `size` ranks whose seats are known; return one exit code for all.

    Raises ClusterError if a rank does not end.
    """
    old = {number: signal.signal(number, local.pass_on) for number in SIGNALS}
    try:
        stuck: list[str] = []
        with file_for_causes() as told:
            local.told = told
            own = {} if told is None else {CAUSES: path_of(told)}
            try:
                local.start(command, size, {**variables, **own})
                # one that came while the last was started has not reached that one
                codes = [-local.asked[0]] if local.asked else local.wait()
            finally:
                stuck = local.kill()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if stuck:
        raise ClusterError(
            f"{', '.join(stuck)} does not end, though it was killed: the kernel holds it in a call to a driver or a"
            " disk; look at dmesg there, and restart that host"
        )
    if cause := first_cause(local.causes):
        local.news.note_cause(cause)
    asked = local.asked
    return EXIT_INTERRUPTED if is_impatient(asked) else combined([code_of(code, asked) for code in codes])


@dataclass
class LocalRanks:
    """The ranks of this host, the signals that have asked them to stop, and which of them others have killed."""

    seats: Seats
    news: RankNews
    ranks: list[Rank] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    told: int | None = None
    """The open file in which ranks leave why they failed."""
    stopped_elsewhere_at: float | None = None
    server: ServerProcess | None = None
    asked_at: float = 0.0
    """When the ranks were last asked to stop."""
    memory_kills: int = field(default_factory=out_of_memory_kills)
    """Of this process's cgroup, before the ranks were started."""

    @property
    def asked(self) -> list[int]:
        return self.seats.asked

    @property
    def where(self) -> str:
        """Return words for this host: `on` it excludes it from jobs, which is not for shells, whose memory is short."""
        return f"on {self.news.host}" if self.news.host else f"({host_name()})"

    def start(self, command: Sequence[str], size: int, variables: Mapping[str, str]) -> None:
        """Start the ranks of this host, unless a signal asks to stop meanwhile."""
        variables = {**variables, STARTED: str(uptime_s())}
        server = self.server
        if server and not server.is_usable(rank_environment((0, size), self.seats, variables), self.is_over):
            server = None
        while len(self.ranks) < size and not self.asked:
            local = len(self.ranks), size
            forked = server.fork(rank_environment(local, self.seats, variables)) if server else None
            self.ranks.append(forked or start_rank(command, local, self.seats, variables))
        if self.asked:
            log.info("asked to stop before all ranks of this attempt were started")

    def is_over(self) -> bool:
        """Return whether no ranks are wanted any more: a stop is asked for, or another host has failed."""
        return bool(self.asked) or failed(self.seats.elsewhere())

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked.append(number)
        self.ask(signal.SIGKILL if is_impatient(self.asked) else number)

    def ask(self, number: int) -> None:
        self.asked_at = time.monotonic()
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    def ask_again(self) -> None:
        """Repeat the last notice, as a rank that was starting has ignored it; not Ctrl-C, which counts."""
        notices = [number for number in self.asked if number in NOTICES]
        if notices and not is_impatient(self.asked) and time.monotonic() - self.asked_at > AGAIN_S:
            self.ask(notices[-1])

    def wait(self) -> list[int]:
        """Wait until all ranks have ended; after a failure, wait no longer than GRACE_S for the others.

        Returns the codes of the ranks that ended by themselves, and of another host that failed; the caller kills the
        rest, and they do not count.
        """
        deadline: float | None = None
        is_told = False
        while None in [rank.poll() for rank in self.ranks]:  # a list: each must be polled to have a returncode
            if self.asked and self.news.stopping and not is_told:  # not by the handler: it may interrupt a log call
                log.info("%s", self.news.stopping)
                is_told = True
            self.ask_again()
            if deadline is None and self.stopped_elsewhere_at is not None:
                deadline = self.stopped_elsewhere_at + STOP_S
            if deadline is None and (self.has_failed() or self.has_failed_elsewhere()):
                deadline = time.monotonic() + GRACE_S
                self.causes = self.failures()  # ranks that die later do so because of it
            if deadline is not None and time.monotonic() > deadline:
                break
            if deadline is None and self.server and not self.asked and self.server.tend():
                self.memory_kills = out_of_memory_kills()  # what killed it is not what will kill a rank
            time.sleep(0.05)
        if deadline is None and self.has_failed():  # all have ended between two looks
            self.causes = self.failures()
        self.tell_failures()
        codes = [rank.returncode for rank in self.ranks if rank.returncode is not None]
        return codes if len(codes) == len(self.ranks) else [*codes, self.seats.elsewhere() or EXIT_DONE]

    def has_failed(self) -> bool:
        return any(failed(rank.returncode) for rank in self.ranks)

    def has_failed_elsewhere(self) -> bool:
        code = self.seats.elsewhere()
        if code == EXIT_STOPPED and self.stopped_elsewhere_at is None:
            self.stopped_elsewhere_at = time.monotonic()  # those here may wait for ranks that never begin
            if not self.asked:
                self.pass_on(signal.SIGTERM, None)  # all have agreed on it, unless the ranks there had not begun
        return failed(code)

    def failures(self) -> list[str]:
        """Return the ranks that have failed by themselves, each in words, or that a signal not from us has ended."""
        codes = [(number, rank.returncode or 0) for number, rank in enumerate(self.ranks, start=self.seats.first)]
        told = [] if self.told is None else causes_of(self.told, dict(codes))
        how = {code: f" by {signal.Signals(-code).name}" for _, code in codes if code < 0}
        if out_of_memory_kills() > self.memory_kills:
            how[-signal.SIGKILL] = OUT_OF_MEMORY
        return told + [
            f"rank {number} {self.where} was killed{how[code]}"
            for number, code in codes
            if code < 0 and -code not in self.asked and not is_impatient(self.asked)
        ]

    def tell_failures(self) -> None:
        if is_impatient(self.asked):  # a person has ended them
            return
        for number, rank in enumerate(self.ranks, start=self.seats.first):
            code = rank.returncode or EXIT_DONE
            if failed(code) and code not in (EXIT_USER_ACTION, EXIT_INTERRUPTED):
                where = f"; its log: {self.news.log_of(number)}" if self.news.log_of else ""
                log.warning("rank %d ended with %s%s", number, spelled(code), where)

    def kill(self) -> list[str]:
        """Kill the ranks; return those that have not ended within KILL_S, in words."""
        for rank in self.ranks:
            rank.kill()
        deadline = time.monotonic() + KILL_S
        while None in [rank.poll() for rank in self.ranks] and time.monotonic() < deadline:
            time.sleep(0.02)
        erase_line(sys.stderr)  # a rank that was killed has left what it drew
        numbered = enumerate(self.ranks, start=self.seats.first)
        return [f"rank {number} {self.where}" for number, rank in numbered if rank.returncode is None]


def start_rank(
    command: Sequence[str], local: tuple[int, int], seats: Seats, variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start one rank; `local` is its number among those of this host, and how many these are."""
    environment = rank_environment(local, seats, variables)
    # a process group of its own: Ctrl-C reaches a rank once, through us
    return subprocess.Popen(command, env=environment, process_group=0, preexec_fn=partial(die_with_parent, os.getpid()))


def rank_environment(local: tuple[int, int], seats: Seats, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a rank, by its number among those of this host, and how many these are."""
    rank, ranks = local
    world = World(rank=seats.first + rank, size=seats.size, local_rank=rank, local_size=ranks, master=seats.master)
    return child_environment({**variables, **rank_variables(world), **threads_of_rank(ranks)})
