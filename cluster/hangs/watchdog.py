"""A process beside the ranks of a host: finds out that they hang, says which one is waited for, and ends them.

    python -m cluster.hangs.watchdog RUN WORLD_SIZE LOCAL_SIZE LAUNCH [HANG_TIMEOUT_S]

It is outside of the ranks because a rank that is stopped, or whose interpreter is kept busy by one thread, cannot tell.
Every host has one; each sees the heartbeats of all ranks (shared_view), comes to the same verdict, reports on its own
ranks and kills them. The job then ends with exit code 1, and can be started again.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from cluster.environment import node_name
from cluster.errors import EXIT_FAILED, ClusterError
from cluster.hangs.hang_detection import Watch
from cluster.hangs.hang_report import write_report
from cluster.hangs.shared_view import POLL_S, SharedView
from cluster.heartbeats.heartbeat_files import (
    Beat,
    Process,
    ended_before,
    local_folders,
    read_local_beats,
    watchdog_locks,
)
from cluster.journal.log import set_up_logging
from cluster.journal.records import last_step, read_events, seconds_since_start, write_event
from cluster.launching.stop_request import SIGNALS
from cluster.paths import RunPaths
from cluster.processes import process_state, started_at

log = logging.getLogger("cluster.hangs.watchdog")  # not __name__: it is run as a program


@dataclass
class HostWatch:
    """One host's watchdog: the beats of its own ranks, those of all ranks, and what follows from them."""

    paths: RunPaths
    view: SharedView
    watch: Watch
    due: float = 0.0
    is_failing: bool = False
    folders: list[Path] = field(init=False)  # once: to resolve the run's folder asks the shared disk
    before: frozenset[Process] = field(init=False)
    locks: set[tuple[Path, int]] = field(init=False)

    def __post_init__(self) -> None:
        view = self.view
        self.folders = local_folders(self.paths, view.launch, view.host)
        self.before = ended_before(self.folders, view.world_size, view.launch)
        self.locks = watchdog_locks(self.folders)

    def has_lost_lock(self) -> bool:
        """Return whether a lock file was removed, so that the ranks take this process for gone and start another."""
        return not self.locks <= watchdog_locks(self.folders)

    def own_beats(self) -> list[Beat]:
        return read_local_beats(self.folders, self.view.world_size, self.view.launch, self.before)

    def living(self) -> dict[int, Beat]:
        """Return the last beat of this host's ranks that still live."""
        return {beat.rank: beat for beat in self.own_beats() if started_at(beat.pid) == beat.started}

    def poll(self, now: float) -> list[int] | None:
        """Write and read the shared files if it is time; return None while all is well, else the culprits."""
        if now < self.due:
            return None
        view, own = self.view, self.own_beats()
        try:
            begun = time.monotonic()
            view.write_own(own)  # blocks as long as the disk does
            beats = view.newest(own, now + time.monotonic() - begun)
            self.is_failing = False
        except OSError as error:  # the other hosts cannot write either: no rank is to blame
            if not self.is_failing:
                log.warning("no heartbeat can be written: %s", error)
            self.is_failing = True
            beats = None
            self.watch.restart_clocks(now)
        now += time.monotonic() - begun
        self.due = now + view.period_s - POLL_S / 2
        if beats is None:
            return None
        stopped = [rank for rank, beat in self.living().items() if process_state(beat.pid) == "T"]
        self.watch.look(beats, now, stopped)
        return self.watch.culprits(now)

    def tell_stragglers(self, now: float) -> None:
        for rank, share in self.watch.stragglers().items():
            if rank in self.living():
                told = self.watch.described(rank, now)
                log.warning("the others waited for %s in %.0f%% of the time", told, 100 * share)
                try:
                    write_event(self.paths, "straggler", rank=rank, host=self.view.host, share=round(share, 2))
                except OSError as error:
                    log.warning("%s: %s", self.paths.attempts, error.strerror)

    def end(self, culprits: list[int], now: float) -> None:
        """Report on this host's ranks and kill them, whatever goes wrong with the report."""
        own = self.living()
        try:
            verdict = write_report(self.paths, self.watch, own, culprits, self.view.launch, now)
            if 0 in own:
                facts = {"step": last_step(self.paths.metrics), "exit_code": EXIT_FAILED, **duration(self.paths)}
                write_event(self.paths, "end", reason=verdict, is_verdict=True, **facts)
        except (OSError, ClusterError) as error:
            log.error("the end of the run was not written: %s", error)
        finally:
            self.kill_ranks()

    def kill_ranks(self) -> None:
        """Kill the ranks of this host: the one that this process dies with is the last."""
        for beat in sorted(self.living().values(), key=lambda beat: beat.pid == os.getppid()):
            try:
                os.kill(beat.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended by itself


def duration(paths: RunPaths) -> dict[str, float]:
    """Return the `seconds` of an end; nothing if there is no start, or a damaged record: the verdict matters more."""
    try:
        seconds = seconds_since_start(read_events(paths))
    except ClusterError as error:
        log.warning("how long the ranks have run is not known: %s", error)
        return {}
    return {} if seconds is None else {"seconds": seconds}


def main(run: str, world_size: str, local_size: str, launch: str, hang_timeout_s: str | None = None) -> None:
    set_up_logging()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # meant for the ranks, which this process does not outlive
    paths, now = RunPaths(Path(run)), time.monotonic()
    view = SharedView(paths.heartbeats, node_name(), launch, int(world_size), int(local_size), changed_at=now)
    timeout_s = float(hang_timeout_s) if hang_timeout_s else None
    host = HostWatch(paths, view, Watch(int(world_size), timeout_s, now, period_s=view.period_s))
    while (culprits := host.poll(time.monotonic())) is None:
        if host.has_lost_lock():
            log.warning("the heartbeats of %s were removed: another process takes over the watch", view.host)
            return
        host.tell_stragglers(time.monotonic())
        time.sleep(POLL_S)
    host.end(culprits, time.monotonic())


if __name__ == "__main__":
    main(*sys.argv[1:])
