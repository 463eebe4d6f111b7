"""What is written about a hang: who is waited for, and what each rank of this host was doing."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from cluster.environment import attempt_of_launcher, node_name
from cluster.hangs.flight_recorder import Wait, ask_for_dumps, of_all_hosts, waits_of, waits_text
from cluster.hangs.hang_detection import Watch
from cluster.hangs.reachability import unreachable
from cluster.heartbeats.heartbeat import STACKS
from cluster.heartbeats.heartbeat_files import Beat, stacks_path
from cluster.paths import RunPaths
from cluster.processes import process_state

log = logging.getLogger("cluster.hangs.watchdog")

COLLECTIVE = ("torch/distributed/", "deepspeed/comm/")
STACKS_S = 1.0


def stacks_of(folder: Path, ranks: Mapping[int, Beat]) -> dict[int, str]:
    """Return the Python stacks of this host's ranks; a stopped one has none to give, and says so."""
    for beat in ranks.values():
        if process_state(beat.pid) not in "TX":
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(beat.pid, STACKS)
    time.sleep(STACKS_S)
    return {rank: stacks_text(stacks_path(folder, rank)) for rank in ranks}


def stacks_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        return f"{path}: {error.strerror}"


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

    The disk may be on another network, so that ranks which cannot talk still have a heartbeat.
    """
    others = sorted({seen.beat.host for seen in watch.ranks.values()} - {node_name()})
    lost = unreachable(others, port=int(launch.rpartition(":")[2]))
    if not lost:
        return [], ""
    is_alone = len(lost) == len(others) > 1
    cut = [node_name()] if is_alone else lost
    ranks = [rank for rank, seen in sorted(watch.ranks.items()) if seen.beat.host in cut]
    missing = "any other host" if is_alone else ", ".join(lost)
    return ranks, f"; {node_name()} gets no answer from {missing} over the network: look at the cables and switches"


def collectives(paths: RunPaths, watch: Watch, own: list[Wait]) -> str:
    """Return in which of NCCL's collectives the ranks of all hosts wait, for the verdict; nothing without NCCL."""
    if not own:
        return ""
    hosts = {seen.beat.host for seen in watch.ranks.values()}
    try:
        waits = of_all_hosts(paths.hangs, attempt_of_launcher() or "", node_name(), hosts, own)
    except OSError as error:
        log.warning("what the ranks wait in is told of this host's alone: %s", error)
        waits = own
    return f"; by NCCL's flight recorder {waits_text(waits)}"


def logs_text(paths: RunPaths, ranks: list[int]) -> str:
    """Return where the logs of these ranks are, for the verdict."""
    attempt = attempt_of_launcher()
    found = [path for rank in ranks if attempt and (path := paths.rank_log(attempt, rank)).exists()]
    more = f" and {len(found) - 2} more" if len(found) > 2 else ""
    return f"; log{'s' * (len(found) > 1)}: {', '.join(map(str, found[:2]))}{more}" if found else ""


def write_report(
    paths: RunPaths, watch: Watch, own: Mapping[int, Beat], culprits: list[int], launch: str, now: float
) -> str:
    """Write what is known about the ranks of this host; return the verdict in one line."""
    began = time.time()
    asked = ask_for_dumps(rank for rank, beat in own.items() if process_state(beat.pid) not in "TX")
    stacks = stacks_of(paths.heartbeats, own)
    waits = collectives(paths, watch, waits_of(own, asked, began))
    cut, network = out_of_reach(watch, launch)
    if cut:  # which of them got what was on its way is chance: to be behind the others tells nothing
        culprits = sorted({*cut, *watch.silent(now)})
    guilty = named(culprits, stacks)
    text = "; ".join(watch.described(rank, now) for rank in guilty) or "all ranks, none behind the others"
    verdict = f"the ranks hang; they wait for {text}{network}{waits}{logs_text(paths, guilty)}"
    parts = [verdict, *(watch.described(rank, now) for rank in sorted(watch.ranks))]
    for rank, beat in own.items():
        parts.append(f"\n== rank {rank}, process {beat.pid}\n{kernel_text(beat.pid)}\n{stacks[rank]}")
    path = paths.hangs / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{node_name()}.txt"
    try:
        paths.hangs.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    except OSError as error:  # the ranks are ended all the same: the report goes to the log instead
        log.error("%s: %s; the report:\n%s", path, error.strerror, "\n".join(parts))
    log.error("%s; the ranks of this host are ended; stacks: %s", verdict, path)
    return verdict
