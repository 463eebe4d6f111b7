from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path

import pytest

from cluster.disk.atomic_files import canonical_json, sha256_of
from cluster.errors import ClusterError, DataError
from data_prep.executors import Workers
from data_prep.shards import read_manifest


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    with Workers(count) as workers:
        assert list(workers.map_slices(math.factorial, range(20), "local")) == [math.factorial(n) for n in range(20)]
        assert list(workers.map_slices(math.factorial, [], "local")) == []


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_of_a_worker_surfaces_as_it_was_raised(count: int, tmp_path: Path) -> None:
    with Workers(count) as workers, pytest.raises(DataError, match="there is no prepared data here"):
        list(workers.map_slices(read_manifest, [tmp_path, tmp_path], "local"))


def test_a_killed_worker_is_a_clear_error() -> None:
    with Workers(2) as workers, pytest.raises(ClusterError, match=r"a worker process was killed.*data.workers"):
        list(workers.map_slices(os._exit, [9, 9], "local"))


def test_nothing_moving_on_local_workers_ends_in_an_error_that_names_them() -> None:
    with (
        Workers(2, stall_s=2.0) as workers,
        pytest.raises(ClusterError, match=r"no item was finished for 2 s on .*pid"),
    ):
        list(workers.map_slices(time.sleep, [0.0, 600.0, 600.0], "local"))


@pytest.mark.slow
def test_nothing_moving_on_ray_ends_in_an_error_that_names_what_is_wanted(tmp_path: Path) -> None:
    """Two CPUs are taken by somebody else's actors, so that no item can ever be scheduled."""
    import ray

    with Workers(2) as workers:
        list(workers.map_slices(canonical_json, [1], "ray"))
        hoard = ray.remote(Hoarder)
        actors = [hoard.options(num_cpus=1).remote() for _ in range(2)]
        ray.get([actor.ready.remote() for actor in actors])
        workers.stall_s = 3.0  # not before: the first item waits for Ray's worker to start
        with pytest.raises(ClusterError, match=r"no item was finished for 3 s on Ray: each needs 1 CPU; .* 0 are free"):
            list(workers.map_slices(canonical_json, [5], "ray"))


class Hoarder:
    def ready(self) -> bool:
        return True


@pytest.mark.slow
def test_a_ray_cluster_without_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with Workers(1) as workers, pytest.raises(ClusterError, match="has no CPU, so no work can start"):
            list(workers.map_slices(math.factorial, [5], "ray"))
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_ray_keeps_the_order_surfaces_errors_and_survives_a_killed_worker(tmp_path: Path) -> None:
    def die_once(number: int) -> int:
        marker = tmp_path / str(number)
        if number % 3 == 0 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    with Workers(2) as workers:
        assert list(workers.map_slices(die_once, range(7), "ray")) == [n * n for n in range(7)]
        with pytest.raises(DataError, match="there is no prepared data here"):
            list(workers.map_slices(read_manifest, [tmp_path], "ray"))
        with pytest.raises(FileNotFoundError):
            list(workers.map_slices(sha256_of, [tmp_path / "absent"], "ray"))


@pytest.mark.slow
def test_the_caller_s_ray_cluster_is_joined_and_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with Workers(1) as workers:
            assert list(workers.map_slices(canonical_json, range(9), "ray")) == [str(n) for n in range(9)]
            assert workers.ray_cpus == 3
        with Workers(1) as workers:
            assert list(workers.map_slices(canonical_json, ["again"], "ray")) == ['"again"']
    finally:
        cluster.shutdown()


def test_a_ray_cluster_that_does_not_answer_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")

    with (
        Workers(1) as workers,
        pytest.raises(ClusterError, match=r"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1 "),
    ):
        list(workers.map_slices(math.factorial, [5], "ray"))
