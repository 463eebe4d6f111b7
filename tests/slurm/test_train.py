"""launch/train.sh on a real Slurm: what it starts, and how its jobs end and start again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from cluster.journal.records import read_events
from cluster.paths import RunPaths
from tests.slurm.runs import TRAIN, attempts, heartbeats, losses, metrics, saved_steps

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

STEPS = 100
ENDLESS = 10**6


RANK_FACTS = """import os
if "SHARDLINE_FORK_SERVER" in os.environ:
    os._exit(1)  # ranks are then started
if os.environ.get("SHARDLINE_LAUNCHER") == "srun" and "RANK" in os.environ:
    told = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURMD_NODENAME")
    print(*(os.environ[name] for name in told), os.environ.get("CUDA_VISIBLE_DEVICES", ""), flush=True)
    os._exit(0)
"""  # imported by each Python when it starts: the ranks only tell where they are


def well_under_way(job: Any) -> Callable[[], bool]:
    """Tell when a run is past its first three steps for its watchdogs too.

    They see a step a second, and may have missed the first that is seen here.
    """
    seen: list[int] = []

    def is_past() -> bool:
        if is_training(job) and (step := min(beat["step"] for beat in heartbeats(job))) not in seen:
            seen.append(step)
        return len(seen) > 2 and seen[-1] - seen[1] >= 3 and bool(saved_steps(job))

    return is_past


def is_training(job: Any) -> bool:
    """Return whether the watchdogs of both hosts tell of a rank that trains; after a start they may not do so yet."""
    beats = heartbeats(job)
    return len(beats) == 2 and not {"load", "idle"}.intersection(beat["phase"] for beat in beats)


def steps_listed(job: Any) -> list[str]:
    """Return the steps of the job that Slurm lists: a new srun would be another one."""
    told = job.cluster.on("ctl", "squeue", "--noheader", "--steps", f"--jobs={job.number}", "--format=%i")
    return sorted(told.split())


def reports(job: Any) -> dict[str, str]:
    """Return the verdict of each host's watchdog, once it is written."""
    texts = {path: path.read_text() for path in (job.folder / "run" / "hangs").glob("*.txt")}
    return {path.stem.rpartition("-")[2]: text.partition("\n")[0] for path, text in texts.items() if text}


@pytest.fixture(scope="module")
def start(slurm: Any, run_yaml: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Submit a run on both hosts, in a folder of its own with a space in its name, and return its job."""

    def submit(*options: str, **train: Any) -> Any:
        folder = tmp_path_factory.mktemp("a run")
        run_yaml(folder, **{"save_every_steps": ENDLESS, **train})
        return slurm.submit("-N2", *options, TRAIN, "run.yaml", cwd=folder)

    return submit


@pytest.fixture(scope="module")
def whole_run(start: Callable[..., Any]) -> tuple[Any, str]:
    """A run that nothing interrupts, to its end; and the connections to rank 0's port that node2 had on the way."""
    job = start(steps=STEPS)
    job.wait_for(lambda: len(metrics(job)) >= 5)
    port = 20000 + int(job.number) * 10
    connections = job.cluster.on("node2", "ss", "--tcp", "--numeric", "--no-header", "dst", f"10.77.0.11:{port}")
    job.wait()
    return job, connections


@pytest.fixture(scope="module")
def endless_job(start: Callable[..., Any]) -> Any:
    """A job that runs until it is stopped, past its first steps."""
    job = start(steps=ENDLESS)
    job.wait_for(lambda: len(metrics(job)) >= 5)
    return job


def test_a_job_trains_one_run_on_both_hosts_to_its_last_step(whole_run: tuple[Any, str]) -> None:
    job, connections = whole_run
    facts = job.facts()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "0")
    assert facts["NodeList"] == "node[1-2]"
    assert "[0/2 node1]" in job.log()
    assert "10.77.0.12" in connections
    assert saved_steps(job) == [STEPS]
    assert len(losses(job)) == STEPS


def test_a_requeued_job_continues_where_it_was_with_the_same_losses_to_the_bit(
    start: Callable[..., Any], whole_run: tuple[Any, str]
) -> None:
    job = start(steps=STEPS)
    job.wait_for(lambda: len(metrics(job)) >= 10)
    job.cluster.on("ctl", "scontrol", "requeue", job.number)
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1")
    _, (_, stopped), (_, resumed), _ = attempts(job)
    assert 10 <= stopped < STEPS
    assert resumed == stopped
    assert saved_steps(job) == [stopped, STEPS]
    assert losses(job) == losses(whole_run[0])


def test_the_notice_of_the_time_limit_puts_the_job_back_into_the_queue_with_a_checkpoint(endless_job: Any) -> None:
    job = endless_job
    job.cluster.on("ctl", "scontrol", "update", f"JobId={job.number}", "TimeLimit=2")  # its notice is due
    job.wait_for(lambda: job.facts()["Restarts"] == "1")
    job.wait_for(lambda: job.facts()["JobState"] == "PENDING")
    job.cluster.on("ctl", "scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    stopped = len(losses(job))
    assert saved_steps(job) == [stopped]
    job.wait_for(lambda: len(metrics(job)) > stopped)
    assert attempts(job) == [("start", 0), ("end", stopped), ("start", stopped)]
    assert "SIGUSR2" in job.log()


def test_after_a_rank_is_killed_the_ranks_start_again_in_place_and_the_reason_names_its_host_and_the_signal(
    endless_job: Any,
) -> None:
    job, before = endless_job, len(attempts(endless_job))
    job.wait_for(lambda: is_training(job))  # since the job was requeued
    rank, steps = heartbeats(job)[1], steps_listed(job)
    job.cluster.on(rank["host"], "kill", "-KILL", str(rank["pid"]))
    job.wait_for(lambda: len(attempts(job)) == before + 2)  # its end, and the start of the ranks in the same job
    assert "the ranks are forked from the fork server" in job.log() and steps_listed(job) == steps
    ends = [event["reason"] for event in read_events(RunPaths(job.folder / "run")) if event["event"] == "end"]
    assert ends[-1] == "rank 1 on node2 was killed by SIGKILL"


def test_a_stop_file_ends_the_job_with_a_checkpoint_and_leaves_it_out_of_the_queue(endless_job: Any) -> None:
    job = endless_job
    restarts = job.facts()["Restarts"]
    (job.folder / "run" / "STOP").touch()
    facts = job.wait()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "75:0", restarts)
    assert saved_steps(job)[-1] == len(losses(job))


def test_a_rank_that_hangs_on_one_host_is_named_and_the_ranks_start_again_in_the_same_job(
    start: Callable[..., Any], whole_run: tuple[Any, str]
) -> None:
    job = start(steps=STEPS, hang_timeout_s=5.0)
    job.wait_for(lambda: len(metrics(job)) >= 10 and is_training(job))
    rank = heartbeats(job)[1]
    assert rank["host"] == "node2"
    job.cluster.on("node2", "kill", "-STOP", str(rank["pid"]))
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0")
    assert "they wait for rank 1 on node2" in job.log() and "restarting the ranks" in job.log()
    logs = {path.name: path.read_text() for path in (job.folder / "run" / "logs").iterdir()}
    assert logs.keys() == {f"{job.number}-{attempt}-rank{rank}.log" for attempt in (1, 2) for rank in (0, 1)}
    assert logs[f"{job.number}-1-rank1.log"].startswith("== rank 1 of 2 on node2, process ")
    assert f"step {STEPS}/{STEPS}" in logs[f"{job.number}-2-rank0.log"] and f"step {STEPS}/{STEPS}" in job.log()
    assert f"; log: {job.folder}/run/logs/{job.number}-1-rank1.log" in job.log()
    events = [event for event, _ in groupby(event for event, _ in attempts(job))]  # rank 0 too may tell its first end
    assert events == ["start", "end", "start", "end"]
    assert losses(job) == losses(whole_run[0])


def test_a_job_whose_host_loses_its_power_is_requeued_and_continues_from_its_newest_checkpoint(
    slurm: Any, start: Callable[..., Any], whole_run: tuple[Any, str]
) -> None:
    job = start(steps=STEPS, save_every_steps=5, hang_timeout_s=5.0)
    job.wait_for(lambda: bool(saved_steps(job)))
    slurm.unplug("node2")  # first, as nobody says goodbye when the power goes
    slurm.power_off("node2")
    slurm.on("ctl", "scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=power")  # Slurm would take 300 s
    try:
        job.wait_for(lambda: job.facts()["Restarts"] == "1" and job.facts()["JobState"] == "PENDING")
        newest = saved_steps(job)[-1]
    finally:
        slurm.power_on("node2")
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1")
    assert attempts(job)[-2:] == [("start", newest), ("end", STEPS)]
    assert losses(job) == losses(whole_run[0])


def test_a_host_whose_network_cable_is_pulled_is_named_and_once_it_is_back_the_job_continues(
    slurm: Any, start: Callable[..., Any], whole_run: tuple[Any, str]
) -> None:
    job = start(steps=STEPS, save_every_steps=20, hang_timeout_s=5.0)
    is_past = well_under_way(job)
    job.wait_for(lambda: is_past() and 2 <= len(metrics(job)) % 20 <= 10)  # not in a save: a slow one is no hang
    slurm.unplug("node2")
    try:
        job.wait_for(lambda: len(reports(job)) == 2)
        newest = saved_steps(job)[-1]
    finally:
        slurm.plug_in("node2")
    facts = job.wait()
    assert "they wait for rank 1 on node2" in reports(job)["node1"]
    assert "node1 gets no answer from node2 over the network" in reports(job)["node1"]
    assert "node2 gets no answer from node1 over the network" in reports(job)["node2"]
    assert facts["JobState"] == "COMPLETED"  # Slurm may have taken the host for lost by then, and requeued the job
    assert attempts(job)[-2:] == [("start", newest), ("end", STEPS)]
    assert losses(job) == losses(whole_run[0])


def test_a_cancelled_job_saves_a_checkpoint_and_is_not_requeued(start: Callable[..., Any]) -> None:
    job = start(steps=ENDLESS)
    job.wait_for(lambda: len(metrics(job)) >= 5)
    job.cluster.on("ctl", "scancel", job.number)
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0")
    assert saved_steps(job) == [len(losses(job))]


def test_a_wrong_configuration_ends_with_2_and_is_not_requeued(start: Callable[..., Any]) -> None:
    job = start(stepz=STEPS)
    facts = job.wait()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0")
    assert "train.stepz: unknown key; did you mean 'steps'?" in job.log()


def test_missing_shards_end_with_2_before_a_rank_is_started(
    slurm: Any, run_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    run_yaml(tmp_path)
    job = slurm.submit("-N2", TRAIN, "run.yaml", "-o", "data.folder=nowhere", cwd=tmp_path)
    assert job.wait()["ExitCode"] == "2:0"
    assert job.log().count("nowhere/manifest.json: there is no prepared data here") == 1
    assert "srun" not in job.log()


def test_an_error_that_every_rank_meets_is_told_once_and_ends_with_2_whichever_rank_ends_first(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "zero3.json").write_text('{"zero_optimization": {"stage": 3}, "train_batch_size": 8}')
    job = start(steps=STEPS, deepspeed=str(tmp_path / "zero3.json"))
    assert job.wait()["ExitCode"] == "2:0"
    assert job.log().count("zero3.json: sets 'train_batch_size'") == 1


def facts_of_ranks(slurm: Any, folder: Path, *options: str) -> list[str]:
    """Submit a job whose ranks only say what Slurm has given them; return that."""
    (folder / "sitecustomize.py").write_text(RANK_FACTS)
    job = slurm.submit(*options, f"--export=ALL,PYTHONPATH={folder}", TRAIN, "run.yaml", cwd=folder)
    assert job.wait()["ExitCode"] == "0:0", job.log()
    return sorted(line for line in job.log().splitlines() if line[:1].isdigit() and " node" in line[:12])


def test_each_gpu_of_the_job_gets_a_rank_that_sees_all_gpus_of_its_node(
    slurm: Any, run_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    run_yaml(tmp_path)
    assert facts_of_ranks(slurm, tmp_path, "-N2", "--ntasks-per-node=2", "--gpus-per-task=1") == [
        "0 0 4 node1 0,1",
        "1 1 4 node1 0,1",
        "2 0 4 node2 0,1",
        "3 1 4 node2 0,1",
    ]


def test_uneven_tasks_are_uneven_ranks(slurm: Any, run_yaml: Callable[..., Path], tmp_path: Path) -> None:
    run_yaml(tmp_path)
    told = [line.rstrip() for line in facts_of_ranks(slurm, tmp_path, "-N2", "-n3")]
    assert told == ["0 0 3 node1", "1 1 3 node1", "2 0 3 node2"]


def test_the_network_of_the_ranks_is_the_one_that_leads_to_the_other_hosts(slurm: Any) -> None:
    code = "from cluster.network.interfaces import *; print(interface_towards(['node1', 'node2']))"
    told = [slurm.on(f"node{number}", "python", "-c", code, cwd=Path(TRAIN).parents[1]) for number in (1, 2)]
    assert told == ["eth0\n", "eth0\n"]  # though node1 resolves itself to 127.0.1.1
