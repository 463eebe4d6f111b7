"""launch/train.sh on a real Slurm: what it starts, and how its jobs end and start again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.journal.records import read_events, read_lines
from cluster.paths import RunPaths

pytestmark = pytest.mark.slurm

TRAIN = str(Path(__file__).resolve().parents[2] / "launch" / "train.sh")
STEPS = 80
ENDLESS = 10**6


RANK_FACTS = """import os
if os.environ.get("SHARDLINE_LAUNCHER") == "srun":
    told = ("PROCID", "LOCALID", "NTASKS")
    cuda = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    print(*(os.environ[f"SLURM_{name}"] for name in told), os.environ["SLURMD_NODENAME"], cuda, flush=True)
    os._exit(0)
"""  # imported by each Python when it starts: the ranks only tell where they are


def metrics(job: Any) -> list[dict[str, Any]]:
    return read_lines(job.folder / "run" / "metrics.jsonl")


def losses(job: Any) -> dict[int, float]:
    """Return the loss of each step; a step that is missing or double in the file fails here."""
    lines = metrics(job)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return {line["step"]: line["loss"] for line in lines}


def attempts(job: Any) -> list[tuple[str, int]]:
    """Return the starts and ends of the run, each with its step."""
    lines = read_lines(job.folder / "run" / "attempts.jsonl")
    return [(line["event"], line["step"]) for line in lines if line["event"] in ("start", "end")]


def saved_steps(job: Any) -> list[int]:
    commits = sorted((job.folder / "run" / "checkpoints").glob("step-*/commit.json"))
    return [json.loads(commit.read_text())["step"] for commit in commits]


def well_under_way(job: Any) -> Callable[[], bool]:
    """Tell when a run is past its first three steps for its watchdogs too: they see a step a second."""
    seen: list[int] = []

    def is_past() -> bool:
        beats = heartbeats(job)
        if len(beats) == 2 and all(beat["phase"] != "load" for beat in beats):
            seen.append(min(beat["step"] for beat in beats))
        return bool(seen) and seen[-1] - seen[0] >= 3 and bool(saved_steps(job))

    return is_past


def heartbeats(job: Any) -> list[dict[str, Any]]:
    """Return the last beat of each rank, as its host's file on the shared disk tells it."""
    hosts = [json.loads(path.read_text()) for path in (job.folder / "run" / "heartbeats").glob("host-*.json")]
    beats = [{**beat, "host": host["host"]} for host in hosts for beat in host["ranks"]]
    return sorted(beats, key=lambda beat: int(beat["rank"]))


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
    job.cluster.on("ctl", "scontrol", "update", f"JobId={job.number}", "TimeLimit=1")  # less than the notice: at once
    job.wait_for(lambda: job.facts()["Restarts"] == "1")
    job.wait_for(lambda: job.facts()["JobState"] == "PENDING")
    job.cluster.on("ctl", "scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    stopped = len(losses(job))
    assert saved_steps(job) == [stopped]
    job.wait_for(lambda: len(metrics(job)) > stopped)
    assert attempts(job) == [("start", 0), ("end", stopped), ("start", stopped)]
    assert "SIGUSR2" in job.log()


def test_a_rank_that_is_killed_is_the_recorded_reason_with_its_host_and_the_signal(endless_job: Any) -> None:
    job, before = endless_job, len(attempts(endless_job))
    rank = heartbeats(job)[1]
    job.cluster.on(rank["host"], "kill", "-KILL", str(rank["pid"]))
    job.wait_for(lambda: len(attempts(job)) == before + 2)  # its end, and the start of the ranks in the same job
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
    job.wait_for(lambda: len(metrics(job)) >= 10)
    rank = heartbeats(job)[1]
    assert rank["host"] == "node2"
    job.cluster.on("node2", "kill", "-STOP", str(rank["pid"]))
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0")
    assert "they wait for rank 1 on node2" in job.log() and "restarting them" in job.log()
    logs = {path.name: path.read_text() for path in (job.folder / "run" / "logs").iterdir()}
    assert logs.keys() == {f"{job.number}-{attempt}-rank{rank}.log" for attempt in (1, 2) for rank in (0, 1)}
    assert logs[f"{job.number}-1-rank1.log"].startswith("== rank 1 of 2 on node2, process ")
    assert f"step {STEPS}/{STEPS}" in logs[f"{job.number}-2-rank0.log"] and f"step {STEPS}/{STEPS}" in job.log()
    assert f"; log: {job.folder}/run/logs/{job.number}-1-rank1.log" in job.log()
    assert [event for event, _ in attempts(job)] == ["start", "end", "start", "end"]
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
    job = start(steps=STEPS, save_every_steps=5, hang_timeout_s=5.0)
    job.wait_for(well_under_way(job))
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
