"""A process beside the ranks of a host: finds out that they stand still, says who is to blame, and ends them.

    python -m cluster.hangs.watchdog RUN WORLD_SIZE LAUNCH [HANG_TIMEOUT_S]

It is outside of the ranks because a rank that is stopped, or whose interpreter is kept busy by one thread, cannot tell.
Every host has one; each sees all ranks through their heartbeats on the shared disk, comes to the same verdict, reports
on its own ranks and kills them. The job then ends with exit code 1, and can be started again.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from cluster.environment import host_name
from cluster.errors import EXIT_FAILED
from cluster.hangs.hang_detection import POLL_S, Watch
from cluster.hangs.reachability import unreachable
from cluster.heartbeat import STACKS, Beat, beat_path, stacks_path, started_at
from cluster.journal import last_step, set_up_logging, write_event
from cluster.paths import RunPaths

log = logging.getLogger("cluster.hangs.watchdog")  # not __name__: it is run as a program

COLLECTIVE = ("torch/distributed/", "deepspeed/comm/")


def read_beats(folder: Path, world_size: int, launch: str) -> Iterator[Beat]:
    """Yield what the ranks of one launch say of themselves."""
    for rank in range(world_size):
        try:
            beat = Beat(**json.loads(beat_path(folder, rank).read_text()))
        except OSError:
            continue  # it has not begun yet, or the disk does not answer, which watch_over finds out
        if beat.launch == launch:
            yield beat


def disk_answers(path: Path) -> bool:
    """Return whether the run's folder can be written to: without it no rank can show that it lives."""
    try:
        path.write_text(str(os.getpid()))
    except OSError as error:
        log.warning("no heartbeat can be written: %s", error)
        return False
    return True


def process_state(pid: int) -> str:
    """Return the state letter of a process: R, S, D, T (stopped) ...; X if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def own_ranks(watch: Watch) -> dict[int, Beat]:
    """Return the ranks of this host that still live."""
    here = {rank: seen.beat for rank, seen in watch.ranks.items() if seen.beat.host == host_name()}
    return {rank: beat for rank, beat in here.items() if started_at(beat.pid) == beat.started}


def stacks_of(folder: Path, ranks: Mapping[int, Beat]) -> dict[int, str]:
    """Return the Python stacks of this host's ranks; a stopped one has none to give, and says so."""
    for beat in ranks.values():
        if process_state(beat.pid) != "T":
            os.kill(beat.pid, STACKS)
    time.sleep(2 * POLL_S)
    return {rank: stacks_path(folder, rank).read_text(errors="replace") for rank in ranks}


def kernel_text(pid: int) -> str:
    """Return what Linux says about a process: its state, where it waits, its system call, its kernel stack."""
    found = [f"state {process_state(pid)}"]
    for name in ("wchan", "syscall", "stack"):
        try:
            found.append(f"{name}: {Path(f'/proc/{pid}/{name}').read_text().strip()}")
        except OSError as error:
            found.append(f"{name}: {error.strerror}")
    return "\n".join(found)


def waits_in_collective(stacks: str) -> bool:
    """Return whether a thread's innermost Python frame is one that talks to the other ranks."""
    lines = stacks.splitlines()
    innermost = [after for line, after in pairwise(lines) if "most recent call first" in line]
    return any(name in line for line in innermost for name in COLLECTIVE)


def named(culprits: list[int], stacks: Mapping[int, str]) -> list[int]:
    """Return the culprits; if it could be any rank, those of this host that do not wait for the others."""
    if culprits:
        return culprits
    busy = [rank for rank, text in sorted(stacks.items()) if not waits_in_collective(text)]
    return busy if len(busy) < len(stacks) else []


def out_of_reach(watch: Watch, launch: str) -> tuple[list[int], str]:
    """Ask the other hosts over the network; return the ranks that are cut off from the others, and a text about it.

    The disk may be on another network, so that ranks which cannot talk still show that they live.
    """
    others = sorted({seen.beat.host for seen in watch.ranks.values()} - {host_name()})
    lost = unreachable(others, port=int(launch.rpartition(":")[2]))
    if not lost:
        return [], ""
    is_alone = len(lost) == len(others) > 1
    cut = [host_name()] if is_alone else lost
    ranks = [rank for rank, seen in sorted(watch.ranks.items()) if seen.beat.host in cut]
    whom = "any other host" if is_alone else ", ".join(lost)
    return ranks, f"; {host_name()} gets no answer from {whom} over the network: look at the cables and switches"


def report(paths: RunPaths, watch: Watch, culprits: list[int], launch: str, now: float) -> str:
    """Write what is known about the ranks of this host; return the verdict in one line."""
    ranks = own_ranks(watch)
    stacks = stacks_of(paths.heartbeats, ranks)
    cut, network = out_of_reach(watch, launch)
    if cut:  # which of them got what was on its way is chance: to be behind the others tells nothing
        culprits = sorted({*cut, *watch.silent(now)})
    guilty = named(culprits, stacks)
    text = "; ".join(watch.described(rank, now) for rank in guilty) or "all ranks, none behind the others"
    verdict = f"the ranks stand still; they wait for {text}{network}"
    paths.hangs.mkdir(parents=True, exist_ok=True)
    path = paths.hangs / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{host_name()}.txt"
    parts = [verdict, *(watch.described(rank, now) for rank in sorted(watch.ranks))]
    for rank, beat in ranks.items():
        parts.append(f"\n== rank {rank}, process {beat.pid}\n{kernel_text(beat.pid)}\n{stacks[rank]}")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    log.error("%s; the ranks of this host are ended; stacks: %s", verdict, path)
    return verdict


def end_ranks(watch: Watch) -> None:
    """Kill the ranks of this host: the one that this process dies with is the last."""
    for beat in sorted(own_ranks(watch).values(), key=lambda beat: beat.pid == os.getppid()):
        os.kill(beat.pid, signal.SIGKILL)


def watch_over(paths: RunPaths, watch: Watch, launch: str) -> None:
    """Watch until the ranks stand still; then report, and end them."""
    while True:
        if not disk_answers(paths.heartbeats / f"watchdog-{host_name()}"):  # blocks as long as the disk does
            watch.forgive(time.monotonic())
        now = time.monotonic()
        own = own_ranks(watch)
        stopped = [rank for rank, beat in own.items() if process_state(beat.pid) == "T"]
        watch.look(read_beats(paths.heartbeats, watch.world_size, launch), now, stopped)
        culprits = watch.culprits(now)
        if culprits is not None:
            verdict = report(paths, watch, culprits, launch, now)
            if 0 in own_ranks(watch):
                seconds = round(now - watch.begun, 3)
                step = last_step(paths.metrics)
                write_event(paths, "end", step=step, reason=verdict, exit_code=EXIT_FAILED, seconds=seconds)
            return end_ranks(watch)
        for rank, share in watch.stragglers().items():
            if rank in own_ranks(watch):
                log.warning("the others waited for %s in %.0f%% of the time", watch.described(rank, now), 100 * share)
                write_event(paths, "straggler", rank=rank, host=host_name(), share=round(share, 2))
        time.sleep(POLL_S)


def main(run: str, world_size: str, launch: str, hang_timeout_s: str | None = None) -> None:
    set_up_logging()
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # meant for the ranks, which this process does not outlive
    timeout_s = float(hang_timeout_s) if hang_timeout_s else None
    watch_over(RunPaths(Path(run)), Watch(int(world_size), timeout_s, time.monotonic()), launch)


if __name__ == "__main__":
    main(*sys.argv[1:])
