"""Which hosts of a job a Ray cluster waits for."""

from __future__ import annotations

import itertools

import pytest

from cluster.launching.ray_cluster import wait_for_hosts


def test_hosts_that_join_one_after_the_other_are_waited_for() -> None:
    joined = itertools.chain([{"a"}, {"a"}], itertools.repeat({"a", "b"}))
    assert wait_for_hosts(lambda: next(joined), ["a", "b"], 60.0) == []


def test_a_host_that_does_not_join_is_named_and_not_waited_for_any_longer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert wait_for_hosts(lambda: {"a", "c"}, ["a", "b", "c"], 0.0) == ["b"]
    assert "Ray: 2 of 3 hosts joined within 0 s; continuing without b" in caplog.text
