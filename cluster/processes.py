"""What Linux knows about a process of this host: /proc/PID/stat."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ENDED = "X"  # the state of a process that is gone


@dataclass(frozen=True, kw_only=True)
class ProcessStat:
    """`state` is Linux's letter: R, S, D, T (stopped), Z (ended, not reaped yet) ...

    `started` is in clock ticks since boot: together with the process id it names a process, as ids are reused.
    """

    state: str
    started: int


def read_stat(pid: int) -> ProcessStat | None:
    """Return the state and the start of a process; None if there is no such process."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = line.rpartition(")")[2].split()  # the second field is the program's name, which may hold blanks and )
    return ProcessStat(state=fields[0], started=int(fields[19]))


def process_state(pid: int) -> str:
    """Return the state letter of a process; ENDED if there is no such process."""
    stat = read_stat(pid)
    return ENDED if stat is None else stat.state


def started_at(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since boot, even if it waits to be reaped; None without one."""
    stat = read_stat(pid)
    return None if stat is None else stat.started


def alive_since(pid: int) -> int | None:
    """Return when a running process was started, in clock ticks since boot; None if it has ended, reaped or not."""
    stat = read_stat(pid)
    return None if stat is None or stat.state in ("Z", ENDED) else stat.started


def ancestors() -> list[str]:
    """Return the command lines of the processes above this one, nearest first, as far as they can be seen."""
    found: list[str] = []
    pid = os.getppid()
    while pid > 0:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            break
        found.append(command.replace("\0", " ").strip())
        pid = int(stat.rpartition(")")[2].split()[1])
    return found


def process_age_s() -> float:
    """Return the seconds since this process was started, imports included."""
    return uptime_s() - (started_at(os.getpid()) or 0) / os.sysconf("SC_CLK_TCK")


def uptime_s() -> float:
    """Return the seconds since this host has booted."""
    return float(Path("/proc/uptime").read_text().split()[0])
