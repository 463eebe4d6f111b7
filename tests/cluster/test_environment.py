"""Which rank am I, by what a launcher set."""

from __future__ import annotations

import os
import tempfile

import pytest

from cluster.environment import (
    COMPILE_CACHES,
    LAUNCHER,
    SRUN,
    allocation_end,
    read_host_place,
    read_world,
    set_library_variables,
    threads_of_rank,
)
from cluster.errors import ClusterError
from cluster.machine import cpu_count
from cluster.network.world import HostPlace

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
TASK = {  # of the srun that launch/train.sh starts
    "SHARDLINE_LAUNCHER": "srun", "SHARDLINE_RANKS": "node1:2 node2:1", "SLURM_NODEID": "1", "SLURMD_NODENAME": "node2",
    "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "20007",
}  # fmt: skip


def test_torchrun_variables_make_a_rank() -> None:
    world = read_world(TORCHRUN)
    assert world is not None
    assert (world.rank, world.size, world.local_rank, world.local_size) == (3, 4, 1, 2)
    assert world.master == ("10.0.0.1", 29500)


def test_a_task_of_our_srun_is_a_host_and_what_it_starts_a_rank() -> None:
    assert read_host_place(TASK) == HostPlace(number=1, count=2, ranks=1, master=("node1", 20007))
    assert read_world(TASK) is None
    rank = {**TASK, **TORCHRUN}
    world = read_world(rank)
    assert world is not None and world.rank == 3
    assert read_host_place(rank) is None


def test_a_host_that_the_job_does_not_have_is_an_error() -> None:
    with pytest.raises(ClusterError, match="SLURM_NODEID=2: SHARDLINE_RANKS tells of 2 hosts only"):
        read_host_place({**TASK, "SLURM_NODEID": "2"})


@pytest.mark.parametrize(
    ("launcher", "gpus", "site", "threads"),
    [
        ("srun", "0,1", None, str(cpu_count())),
        ("srun", "0,1", "3", "3"),
        ("srun", "", "3", "1"),
        ("ours", "0,1", "3", "1"),
    ],
)
def test_ranks_on_gpus_under_slurm_have_the_threads_that_the_site_or_their_cpus_give_and_others_one(
    monkeypatch: pytest.MonkeyPatch, launcher: str, gpus: str, site: str | None, threads: str
) -> None:
    monkeypatch.setenv("SHARDLINE_LAUNCHER", launcher)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if site is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", site)
    assert threads_of_rank(1) == {"OMP_NUM_THREADS": threads}


@pytest.mark.parametrize("set_by_site", [None, "/scratch/triton"])
def test_ranks_under_slurm_compile_into_a_folder_of_their_host_unless_the_site_says_where(
    set_by_site: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*COMPILE_CACHES, LAUNCHER, "OMP_NUM_THREADS", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, "")  # so that what is set here is taken back
        monkeypatch.delenv(name)
    set_library_variables()
    assert not set(COMPILE_CACHES) & os.environ.keys()
    monkeypatch.setenv(LAUNCHER, SRUN)
    if set_by_site:
        monkeypatch.setenv("TRITON_CACHE_DIR", set_by_site)
    set_library_variables()
    local = f"{tempfile.gettempdir()}/shardline-caches-{os.getuid()}"
    assert os.environ["TRITON_CACHE_DIR"] == (set_by_site or f"{local}/triton")
    assert os.environ["TORCH_EXTENSIONS_DIR"] == f"{local}/torch"


def test_a_batch_script_is_no_rank_though_slurm_sets_its_variables_there_too() -> None:
    assert read_world({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}) is None


def test_a_launcher_that_says_half_is_an_error_that_names_the_variable() -> None:
    with pytest.raises(ClusterError, match="MASTER_ADDR is not set"):
        read_world({key: value for key, value in TORCHRUN.items() if key != "MASTER_ADDR"})


def test_the_end_of_the_allocation_is_what_slurm_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert allocation_end() is None
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1700000000")
    assert allocation_end() == 1.7e9


TRAINJOB = {  # a pod of Kubeflow's TrainJob
    "PET_NNODES": "2", "PET_NPROC_PER_NODE": "auto", "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "29500",
}  # fmt: skip


def test_torchruns_options_in_the_environment_make_a_host_but_no_rank() -> None:
    place = read_host_place(TRAINJOB)
    assert place == HostPlace(number=1, count=2, ranks=None, master=("job-node-0-0.job", 29500))
    assert read_world(TRAINJOB) is None
    assert read_world({**TRAINJOB, "RANK": "1", "WORLD_SIZE": "2"}) is None  # of the older PyTorchJob: they number pods


def test_a_rank_that_a_host_or_torchrun_has_started_is_no_host() -> None:
    assert read_host_place({**TRAINJOB, **TORCHRUN}) is None
    assert read_world({**TRAINJOB, **TORCHRUN}) is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PET_NNODES": "1:4"}, "PET_NNODES=1:4: expected one number"),
        ({"PET_NNODES": "0"}, "PET_NNODES=0: expected one number"),
        ({"PET_NODE_RANK": "2"}, "PET_NODE_RANK=2: the hosts of a run on 2 are 0 to 1"),
        ({"PET_NPROC_PER_NODE": "0"}, "PET_NPROC_PER_NODE=0: expected a number of ranks"),
        ({"PET_MASTER_ADDR": None}, "PET_MASTER_ADDR is not set"),
        ({"PET_NODE_RANK": None}, "PET_NODE_RANK is not set"),
    ],
)
def test_a_place_that_cannot_be_is_an_error_that_names_the_variable(changes: dict[str, str | None], words: str) -> None:
    values = {name: value for name, value in {**TRAINJOB, **changes}.items() if value is not None}
    with pytest.raises(ClusterError, match=words):
        read_host_place(values)


def test_variables_that_number_hosts_as_ranks_are_not_taken_for_a_rank() -> None:
    with pytest.raises(ClusterError, match="not LOCAL_RANK: if they number hosts"):
        read_world({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"})
