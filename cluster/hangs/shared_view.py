"""What one host's watchdog knows of all ranks, through a few files on the shared disk.

Every watchdog writes its host's file. The one with the lowest rank reads the files of all hosts and writes one file of
all ranks, which the others read: with H hosts that is about 4 H file operations each `period_s`, not H x ranks. If
that file does not change for some periods, because its writer or its writer's host is gone, other watchdogs write it
until they see one with a lower rank do so. No clocks are compared: a file is new if it differs from the one before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cluster.heartbeats.heartbeat_files import (
    MOST_BYTES,
    Beat,
    HostBeats,
    host_path,
    parsed_object,
    read_small,
    replace_file,
)

ALL_RANKS = "all-ranks.json"
POLL_S = 0.5
HOSTS_PER_S = 64  # host files that are written in a second; each costs four operations
PATIENCE_PERIODS = 4


def period_for(hosts: int) -> float:
    """Return how often a host's file is written: 0.5 s up to 32 hosts, 2 s for 128."""
    return max(POLL_S, hosts / HOSTS_PER_S)


@dataclass
class SharedView:
    """The files on the shared disk as the watchdog of `host` writes and reads them. Times are this process's own."""

    folder: Path
    host: str
    launch: str
    world_size: int
    local_size: int
    changed_at: float
    leader: int | None = None  # the lowest rank on the host whose watchdog wrote the file of all ranks
    stamp: str = ""
    published: int = 0
    written: int = 0
    period_s: float = field(init=False)
    found: dict[Path, HostBeats] = field(default_factory=dict)  # the hosts' files as this process first read them
    has_read_hosts: bool = False

    def __post_init__(self) -> None:
        stamp = parsed_object(read_small(self.folder / ALL_RANKS, MOST_BYTES)).get("stamp")
        self.stamp = stamp if isinstance(stamp, str) else ""  # perhaps of a launch that met at the same port
        self.period_s = period_for(-(-self.world_size // max(1, self.local_size)))

    def write_own(self, own: Sequence[Beat]) -> None:
        """Write this host's file. Raises OSError if the shared disk does not take it."""
        self.written += 1
        replace_file(host_path(self.folder, self.host), self.own_beats(own).as_record())

    def newest(self, own: Sequence[Beat], now: float) -> list[Beat] | None:
        """Return the beats of all ranks; None if there are none newer than the last ones.

        Raises OSError if this host is to write the file of all ranks and the shared disk does not take it.
        """
        lowest = min((beat.rank for beat in own), default=None)
        beats = None if lowest == 0 else self.read_all(now)
        if lowest is None or not self.is_leader(lowest, now):
            return beats
        hosts = [self.own_beats(own), *self.read_hosts()]
        self.published += 1
        self.stamp, self.leader, self.changed_at = f"{os.getpid()}-{self.host}-{self.published}", lowest, now
        record = {"launch": self.launch, "leader": lowest, "stamp": self.stamp}
        replace_file(
            self.folder / ALL_RANKS, {**record, "hosts": [host.as_record() for host in hosts]}, f".{self.host}.new"
        )
        return [beat for host in hosts for beat in host.beats]

    def own_beats(self, own: Sequence[Beat]) -> HostBeats:
        return HostBeats(launch=self.launch, host=self.host, beats=own, written=self.written)

    def is_leader(self, lowest: int, now: float) -> bool:
        """Return whether this watchdog is to write the file of all ranks.

        The further back a host is, the longer it waits for those before it; the wait grows with the logarithm, so that
        a whole rack may be lost. If several begin at once, they see each other in the file and the lowest rank stays.
        """
        if lowest == 0 or (self.leader is not None and self.leader >= lowest):
            return True
        periods = PATIENCE_PERIODS + (lowest // max(1, self.local_size)).bit_length()
        return now - self.changed_at > periods * self.period_s

    def read_all(self, now: float) -> list[Beat] | None:
        """Return what the file of all ranks says, if it has changed."""
        values = parsed_object(read_small(self.folder / ALL_RANKS, MOST_BYTES))
        leader, stamp, hosts = values.get("leader"), values.get("stamp"), values.get("hosts")
        if values.get("launch") != self.launch or stamp == self.stamp:
            return None
        if type(leader) is not int or not isinstance(stamp, str) or not isinstance(hosts, list):
            return None
        self.leader, self.stamp, self.changed_at = leader, stamp, now
        found = [HostBeats.from_record(host, self.world_size) for host in hosts]
        return [beat for host in found if host is not None and host.launch == self.launch for beat in host.beats]

    def read_hosts(self) -> list[HostBeats]:
        """Return what the other hosts' files say; those that an earlier launch has left are removed.

        One that has not changed since the first look may be of an earlier launch that met at the same port.
        """
        own, found = host_path(self.folder, self.host), []
        for path in sorted(self.folder.glob("host-*.json")):
            if path == own:
                continue
            content = parsed_object(read_small(path, MOST_BYTES))
            host = HostBeats.from_record(content, self.world_size)
            if host is not None and host.launch == self.launch:
                if not self.has_read_hosts:
                    self.found[path] = host
                if self.found.get(path) != host:
                    found.append(host)
            elif host is not None:
                with suppress(OSError):  # it is read again, and not taken for one of this launch
                    path.unlink()
        self.has_read_hosts = True
        return found
