"""Which rank am I, by what a launcher set."""

from __future__ import annotations

import pytest

from cluster.environment import allocation_end, read_world
from cluster.errors import ClusterError

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
SRUN = {
    "SHARDLINE_LAUNCHER": "srun", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "MASTER_ADDR": "node1", "MASTER_PORT": "20007",
}  # fmt: skip


def test_torchrun_variables_make_a_rank() -> None:
    world = read_world(TORCHRUN)
    assert world is not None
    assert (world.rank, world.size, world.local_rank, world.local_size) == (3, 4, 1, 2)
    assert world.master == ("10.0.0.1", 29500)


def test_a_task_of_srun_is_a_rank() -> None:
    world = read_world(SRUN)
    assert world is not None
    assert (world.rank, world.size, world.local_rank, world.local_size) == (1, 2, 0, 1)


def test_a_batch_script_is_no_rank_though_slurm_sets_its_variables_there_too() -> None:
    assert read_world({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}) is None


def test_a_launcher_that_says_half_is_an_error_that_names_the_variable() -> None:
    with pytest.raises(ClusterError, match="MASTER_ADDR is not set"):
        read_world({key: value for key, value in SRUN.items() if key != "MASTER_ADDR"})


def test_the_end_of_the_allocation_is_what_slurm_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert allocation_end() is None
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1700000000")
    assert allocation_end() == 1.7e9
