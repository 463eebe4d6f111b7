"""Where the ranks of a job run, from what Slurm says in the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.slurm.job import is_batch_script, read_job
from cluster.slurm.layout import plan_layout

JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "a[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_CPUS_PER_NODE": "4,2",
    "SLURM_TASKS_PER_NODE": "2,1",
    "SLURM_NTASKS": "3",
}


def test_a_job_is_read_as_slurm_spells_it() -> None:
    job = read_job(JOB)
    assert (job.name, job.cpus, job.tasks, job.gpus, job.restarts) == ("7", (4, 2), (2, 1), 0, 0)


def test_a_task_of_an_array_is_named_by_its_array() -> None:
    assert read_job({**JOB, "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}).name == "5_3"


def test_what_an_outer_job_has_left_is_not_this_job_s() -> None:
    left = {**JOB, "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "4"}
    alone, in_array = {"JobId": "7", "Restarts": "0"}, {"JobId": "7", "ArrayJobId": "6", "ArrayTaskId": "2"}
    told = [read_job(left, ask={7: record}.get) for record in (alone, in_array, None)]
    assert [(job.name, job.restarts) for job in told] == [("7", 0), ("6_2", 0), ("5_3", 4)]


def test_in_a_shell_that_is_a_step_the_variables_do_not_tell_the_tasks_of_the_job() -> None:
    assert read_job({**JOB, "SLURM_TASKS_PER_NODE": "1", "SLURM_NTASKS": "1"}).tasks == ()


def test_tasks_that_nobody_asked_for_are_not_the_jobs_layout() -> None:
    exclusive = {name: value for name, value in JOB.items() if name != "SLURM_NTASKS"}
    assert read_job({**exclusive, "SLURM_TASKS_PER_NODE": "4,2"}).tasks is None


def test_an_arbitrary_layout_is_in_the_file_that_sbatch_was_given() -> None:
    arbitrary = {name: value for name, value in JOB.items() if name != "SLURM_TASKS_PER_NODE"}
    job = read_job({**arbitrary, "SLURM_DISTRIBUTION": "arbitrary", "SLURM_HOSTFILE": "/shared/hosts"})
    assert (job.tasks, job.task_file) == (None, Path("/shared/hosts"))


@pytest.mark.parametrize(("spelled", "gpus"), [("8", 8), ("h200:8", 8), ("8(x2)", 8), ("a100:4(x2)", 4)])
def test_gpus_are_read_with_and_without_a_type(spelled: str, gpus: int) -> None:
    assert read_job({**JOB, "SLURM_GPUS_PER_NODE": spelled}).gpus == gpus


@pytest.mark.parametrize("cpus", ["4", "4,2,1", "4x2", ""])
def test_counts_that_do_not_fit_the_hosts_are_refused(cpus: str) -> None:
    with pytest.raises(ClusterError, match="expected a number for each"):
        read_job({**JOB, "SLURM_JOB_CPUS_PER_NODE": cpus})


@pytest.mark.parametrize(
    ("commands", "is_batch"),
    [
        (["bash", "slurmstepd: [14.batch]", "slurmd"], True),
        (["python -m launch tune --task", "bash", "slurmstepd: [14_2.batch]"], True),
        (["bash", "slurmstepd: [14.0]"], False),
        (["bash", "sshd"], False),
    ],
)
def test_a_batch_script_is_told_from_a_task_of_srun_by_its_daemon(commands: list[str], is_batch: bool) -> None:
    assert is_batch_script(commands) == is_batch


def test_one_of_several_tasks_starts_nothing() -> None:
    with pytest.raises(ClusterError, match="was started 2 times, by srun"):
        read_job({**JOB, "SLURM_STEP_NUM_TASKS": "2"})


def test_srun_starts_one_task_a_host_with_all_that_the_job_has_there() -> None:
    layout = plan_layout(["a1", "a2"], [32, 32], [1, 1], {"a1": 8, "a2": 8})
    one_each = ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert (layout.ranks, layout.options) == ((8, 8), [*one_each, "--cpus-per-task=32", "--gpus-per-node=8"])


def test_hosts_with_unequal_cpus_give_all_of_them_to_their_task() -> None:
    layout = plan_layout(["a1", "a2"], [4, 1], [2, 1], {})
    one_each = ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert (layout.ranks, layout.options) == ((2, 1), [*one_each, "--whole", "--cpu-bind=none"])


def test_uneven_gpus_are_uneven_ranks() -> None:
    assert plan_layout(["a1", "a2"], [4, 2], [1, 1], {"a1": 2, "a2": 1}).ranks == (2, 1)


def test_a_host_without_a_gpu_among_hosts_with_gpus_is_named() -> None:
    with pytest.raises(ClusterError, match="no GPU on a2, but has some on other hosts"):
        plan_layout(["a1", "a2"], [4, 4], [1, 1], {"a1": 2, "a2": 0})


def test_a_host_with_fewer_cpus_than_ranks_is_named() -> None:
    with pytest.raises(ClusterError, match="1 CPU for 2 ranks on a2; submit with --exclusive"):
        plan_layout(["a1", "a2"], [4, 1], [2, 2], {})
