"""What the watchdogs of many hosts write for one another on the shared disk, and what they find there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.hangs.hang_detection import Watch
from cluster.hangs.shared_view import ALL_RANKS, SharedView
from cluster.heartbeats.heartbeat_files import Beat, host_path

LAUNCH = "first:1"


@dataclass
class Hosts:
    """Some hosts with two ranks each, whose watchdogs look once in each period."""

    folder: Path
    size: int = 4
    now: float = 0.0
    count: int = 0
    dead: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.views = [
            SharedView(self.folder, f"h{n}", LAUNCH, 2 * self.size, 2, changed_at=0.0) for n in range(self.size)
        ]
        self.watches = [Watch(2 * self.size, None, begun=0.0) for _ in self.views]

    def beats(self, host: int) -> list[Beat]:
        return [
            Beat(launch=LAUNCH, rank=r, host=f"h{host}", pid=1, started=1, phase="data", step=5, count=self.count)
            for r in (2 * host, 2 * host + 1)
        ]

    def look(self) -> None:
        self.now += 0.5
        self.count += 1
        for number, view in enumerate(self.views):
            if number not in self.dead:
                view.write_own(self.beats(number))
                found = view.newest(self.beats(number), self.now)
                if found is not None:
                    self.watches[number].look(found, self.now)

    def leaders(self) -> set[int]:
        before = [view.published for view in self.views]
        self.look()
        return {n for n, view in enumerate(self.views) if view.published > before[n]}


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


def test_every_watchdog_sees_every_rank_and_one_reads_for_all(hosts: Hosts) -> None:
    for _ in range(4):
        hosts.look()
    assert [sorted(watch.ranks) for watch in hosts.watches] == [list(range(8))] * 4
    assert hosts.leaders() == {0}


@pytest.mark.parametrize("dead", [{0}, {0, 1}, {0, 1, 2}])
def test_a_host_that_dies_is_replaced_as_the_reader_and_its_ranks_are_named_within_a_minute(
    hosts: Hosts, dead: set[int]
) -> None:
    for _ in range(4):
        hosts.look()
    hosts.dead = dead
    for _ in range(80):
        hosts.look()
    assert hosts.leaders() == {min(set(range(4)) - dead)}
    lost = sorted(rank for host in dead for rank in (2 * host, 2 * host + 1))
    assert [hosts.watches[n].silent(hosts.now) for n in set(range(4)) - dead] == [lost] * (4 - len(dead))


def test_the_first_host_reads_for_all_again_when_it_is_back(hosts: Hosts) -> None:
    hosts.look()
    hosts.dead = {0}
    for _ in range(20):
        hosts.look()
    hosts.dead = set()
    hosts.look()
    assert hosts.leaders() == {0}


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40] if path.is_file() else b'{"launch": "first:1", "ho')


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    (path / "inside").mkdir(parents=True)


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


def other_types(path: Path) -> None:
    ranks = [7, None, {"rank": "1"}, {"rank": -1}, {"rank": 10**9, "pid": 1, "started": 1, "phase": "x", "step": 1}]
    path.write_text(json.dumps({"launch": LAUNCH, "host": "h1", "ranks": ranks, "leader": "0", "stamp": 3, "hosts": 1}))


def ahead(path: Path) -> None:
    if path.is_file():
        os.utime(path, (4e9, 4e9))


ODD = [empty, half, binary, deep, folder, fifo, dangling, other_types, ahead]


@pytest.mark.parametrize("name", ["host-h0.json", "host-h1.json", ALL_RANKS, "host-h9.json", "host-h1.json.new"])
@pytest.mark.parametrize("spoil", ODD, ids=lambda spoil: spoil.__name__)
def test_whatever_lies_under_a_heartbeat_s_name_the_watch_continues(
    hosts: Hosts, spoil: Callable[[Path], None], name: str
) -> None:
    hosts.look()
    spoil(hosts.folder / name)
    for _ in range(3):
        hosts.look()
    for watch in hosts.watches:
        assert {rank: seen.beat.count for rank, seen in watch.ranks.items()}.keys() == set(range(8))
        assert all(hosts.count - seen.beat.count <= 2 for seen in watch.ranks.values())


def test_files_of_an_earlier_launch_and_of_an_older_version_are_not_counted(hosts: Hosts) -> None:
    record = SharedView(hosts.folder, "h7", "other:2", 8, 2, changed_at=0.0)
    record.write_own([Beat(launch="other:2", rank=0, host="h7", pid=1, started=1, phase="data", step=900, count=9)])
    (hosts.folder / "rank-00000.json").write_text('{"launch": "other:2", "rank": 0}')
    for _ in range(4):
        hosts.look()
    assert {seen.beat.step for watch in hosts.watches for seen in watch.ranks.values()} == {5}
    assert not host_path(hosts.folder, "h7").exists()


def test_files_of_an_earlier_launch_that_met_at_the_same_port_are_not_counted(tmp_path: Path) -> None:
    earlier = Hosts(tmp_path)
    for _ in range(3):
        earlier.look()
    gone = Beat(launch=LAUNCH, rank=2, host="h9", pid=1, started=1, phase="step", step=900, count=9)
    SharedView(tmp_path, "h9", LAUNCH, 8, 2, changed_at=0.0).write_own([gone])
    later = Hosts(tmp_path, count=100)
    for _ in range(4):
        later.look()
    for watch in later.watches:
        assert {seen.beat.step for seen in watch.ranks.values()} == {5}
        assert all(seen.beat.count > 100 for seen in watch.ranks.values()) and len(watch.ranks) == 8


def test_ranks_that_stopped_before_the_other_hosts_looked_are_seen(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    stopped = hosts.beats(3)
    hosts.views[3].write_own(stopped)
    for _ in range(4):
        hosts.dead = {3}
        hosts.look()
        hosts.views[3].write_own(stopped)
    for number in range(3):
        assert hosts.watches[number].ranks.keys() == set(range(8))
    assert {beat.rank for beat in hosts.views[3].newest(stopped, hosts.now) or []} == set(range(8))
