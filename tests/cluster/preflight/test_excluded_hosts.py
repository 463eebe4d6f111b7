"""Which hosts a run leaves out: what its attempts say of them, and the file that keeps it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.journal.records import read_events, write_event
from cluster.paths import RunPaths
from cluster.preflight.excluded_hosts import (
    ExcludedHosts,
    excluded_text,
    named_by_failures,
    read_excluded,
    write_excluded,
)

HANG = "the ranks hang; they wait for rank 1 on {} (process 7) in phase step of step 9 for 20 s"
NODES = ("node1", "node2", "node3")


def attempt(paths: RunPaths, reason: str, code: int = 1) -> None:
    write_event(paths, "launch", reached=0)
    write_event(paths, "end", reason=reason, exit_code=code, step=0)


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "run")


def named(paths: RunPaths, excluded: ExcludedHosts | None = None) -> list[str]:
    return list(named_by_failures(read_events(paths), excluded or ExcludedHosts(), NODES))


def test_two_failures_that_name_one_host_exclude_it_with_the_last_reason(paths: RunPaths) -> None:
    attempt(paths, HANG.format("node2"))
    assert named(paths) == []
    attempt(paths, "RuntimeError: out of memory")
    attempt(paths, "rank 3 on node2.cluster.org was killed by SIGKILL")  # a host may know itself by a longer name
    assert named(paths) == ["node2"]
    (reason,) = named_by_failures(read_events(paths), ExcludedHosts(), NODES).values()
    assert reason == "2 failures named it; the last one: rank 3 on node2.cluster.org was killed by SIGKILL"


def test_stops_failures_without_a_name_and_hosts_that_blame_each_other_exclude_none(paths: RunPaths) -> None:
    for _ in range(2):
        attempt(paths, "RuntimeError: Connection closed by peer [10.77.0.12]")
        attempt(paths, HANG.format("node2"), code=75)
        attempt(paths, HANG.format("node2") + "; rank 0 on node1 (process 5) in phase step of step 9")
        attempt(paths, HANG.format("elsewhere"))
        attempt(paths, "rank 2 on node3 was killed: out of memory, beyond what the job asked for")
    assert named(paths) == []
    attempt(paths, "node3 was lost")
    attempt(paths, "ranks 2,3 on node3 were killed by SIGKILL")
    assert named(paths) == ["node3"]


def test_a_forgiven_host_is_judged_by_what_follows_alone(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        attempt(paths, HANG.format("node2"))
    excluded = ExcludedHosts().excluding({"node2": "two failures"}, reached=9)
    assert named(paths, excluded) == []  # it is there already
    monkeypatch.setattr("cluster.preflight.excluded_hosts.now", lambda: "2999-01-01T00:00:00+00:00")
    excluded = excluded.forgiving(["node2"])
    write_excluded(paths, excluded)
    assert read_excluded(paths) == excluded
    assert (excluded.hosts, excluded.requeues, named(paths, excluded)) == ({}, (), [])


def test_a_silent_host_that_is_broken_too_is_left_until_it_is_forgiven_and_not_the_other_way_round(
    paths: RunPaths,
) -> None:
    excluded = ExcludedHosts().excluding({"node2": "no facts", "node3": "no GPU"}, 0, silent=["node2"])
    again = excluded.excluding({"node2": "no facts", "node3": "no facts"}, 1, silent=["node2", "node3"])
    assert again.hosts == excluded.hosts
    write_excluded(paths, again.excluding({"node2": "no GPU"}, 2))
    assert "until" not in paths.excluded_hosts.read_text()  # earlier versions know no such key
    assert {host: why.reason for host, why in read_excluded(paths).hosts.items()} == dict.fromkeys(
        ("node2", "node3"), "no GPU"
    )


def test_requeues_count_as_long_as_no_new_step_follows() -> None:
    excluded = ExcludedHosts()
    for reached in (5, 5, 8):
        excluded = excluded.excluding({f"node{reached}": "broken"}, reached)
    assert [excluded.requeues_without_progress(reached) for reached in (5, 8, 9)] == [3, 1, 0]


def test_a_list_that_is_damaged_or_newer_is_named_and_what_is_right_is_told(paths: RunPaths) -> None:
    assert excluded_text(paths) == ""
    write_excluded(paths, ExcludedHosts().excluding({"node2": "preflight: no GPU"}, 0))
    assert "node2 since 2" in excluded_text(paths) and excluded_text(paths).endswith(": preflight: no GPU")
    for content, message in (
        ('{"version": 1', "damaged"),
        ('{"version": 1, "hosts": 3}', "damaged"),
        ('{"version": 2}', "version 2"),
    ):
        paths.excluded_hosts.write_text(content)
        with pytest.raises(ClusterError, match=message):
            read_excluded(paths)
        assert message in excluded_text(paths)
