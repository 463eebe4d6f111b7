"""How the watch over a run grows with its hosts: counted in calls, and the verdicts of a simulated cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.growth_ranks import Cluster, heartbeats, restore_calls, write_checkpoint
from cluster.hangs.shared_view import period_for

HOSTS = 3


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three hosts of eight ranks that have trained for a while."""
    trained = Cluster(tmp_path / "run", 8 * HOSTS)
    for _ in range(24):
        assert not trained.poll()
    yield trained
    trained.remove()


@pytest.mark.parametrize("hosts", [1, 8])
def test_file_operations_of_heartbeats_grow_with_the_hosts_and_not_with_the_ranks(hosts: int) -> None:
    assert heartbeats(8 * hosts, simulated_s=4.0) <= (4 * hosts + 3) / period_for(hosts)


def test_a_thousand_ranks_stay_far_below_five_hundred_operations_a_second() -> None:
    assert all((4 * hosts + 3) / period_for(hosts) < 300 for hosts in (1, 32, 128, 1000))


@pytest.mark.parametrize(
    ("silent", "dead", "expected"),
    [({13}, set(), [13]), (set(), {0}, list(range(8))), (set(), {2}, list(range(16, 24)))],
    ids=["a rank hangs", "the first host loses its power", "another host loses its power"],
)
def test_every_host_names_who_is_gone_within_a_minute(
    cluster: Cluster, silent: set[int], dead: set[int], expected: list[int]
) -> None:
    verdicts: dict[int, list[int]] = {}
    begun = cluster.now
    while len(verdicts) < HOSTS - len(dead):
        verdicts |= cluster.poll(frozenset(silent), frozenset(dead))
        assert cluster.now - begun < 60
    assert list(verdicts.values()) == [expected] * (HOSTS - len(dead))


@pytest.mark.parametrize(("written", "read"), [(8, 8), (64, 64), (64, 8), (8, 64)])
def test_a_restore_opens_and_looks_at_files_in_proportion_to_the_ranks(tmp_path: Path, written: int, read: int) -> None:
    folder = write_checkpoint(tmp_path, written)
    calls = restore_calls(written, folder, read)
    assert calls["stat"] <= 7 * (written + read) and calls["open"] <= 14 * (written + read)
