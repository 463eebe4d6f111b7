"""Every fault of a cluster in every phase of a run, on a real Slurm: the bits are those of a run without any.

make soak ARGS="-k fault_matrix"                 all of it; the rows that it prints are kept in tests/SOAK.md
make soak ARGS="-k 'fault_matrix and controller'"
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.journal.records import read_events
from cluster.paths import RunPaths
from tests.slurm.runs import TRAIN, heartbeats, losses, metrics, saved_steps, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

FAULTS_C = Path(__file__).resolve().parents[1] / "faults" / "faults.c"
STEPS = 1500
VALIDATE, SAVE = 100, 50
PHASES = ("start", "step", "evaluate", "save")
SLOW_SAVE = "fsync .partial sleep 300 0\n"  # a rule of faults.c: a save takes seconds, so that faults can meet it


@dataclass(frozen=True)
class Fault:
    """Something that a cluster does to a job. `may_survive` says that the ranks themselves may go on."""

    name: str
    happen: Callable[[Any], None]
    may_survive: bool = False
    phases: tuple[str, ...] = PHASES


def controller(job: Any, *command: str) -> None:
    job.cluster.on("ctl", *command)


def requeue(job: Any) -> None:
    controller(job, "scontrol", "requeue", job.number)


def time_limit(job: Any) -> None:
    restarts = int(job.facts()["Restarts"])
    controller(job, "scontrol", "update", f"JobId={job.number}", "TimeLimit=1")  # less than the notice: at once
    job.wait_for(lambda: int(job.facts()["Restarts"]) > restarts and job.facts()["JobState"] == "PENDING")
    controller(job, "scontrol", "update", f"JobId={job.number}", "TimeLimit=60")


def signal_ranks(job: Any) -> None:
    controller(job, "scancel", "--signal=USR2", job.number)


def signal_script(job: Any) -> None:
    controller(job, "scancel", "--batch", "--signal=USR1", job.number)  # as sbatch --signal=B:USR1 sends it


def cut_power(job: Any, *hosts: str) -> None:
    restarts = int(job.facts()["Restarts"])
    for host in hosts:
        job.cluster.unplug(host)  # first, as nobody says goodbye when the power goes
        job.cluster.power_off(host)
    for host in hosts:
        controller(job, "scontrol", "update", f"NodeName={host}", "State=DOWN", "Reason=power")  # or wait 300 s
    job.wait_for(lambda: int(job.facts()["Restarts"]) > restarts)


def lose_power(job: Any, *hosts: str) -> None:
    cut_power(job, *hosts)
    for host in hosts:
        job.cluster.power_on(host)


def pull_cable(job: Any, seconds: float) -> None:
    job.cluster.unplug("node2")
    time.sleep(seconds)
    job.cluster.plug_in("node2")


def lose_network(job: Any, host: str) -> None:
    """Pull a cable until Slurm gives the host up, after its default of five minutes, and put it back then."""
    restarts = int(job.facts()["Restarts"])
    job.cluster.unplug(host)
    until(lambda: int(job.facts()["Restarts"]) > restarts, lambda: f"{host} was not given up")
    job.cluster.plug_in(host)


def preempt(job: Any) -> None:
    restarts = int(job.facts()["Restarts"])
    controller(job, "sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    job.wait_for(lambda: int(job.facts()["Restarts"]) > restarts)


def restart_slurmd(job: Any, host: str) -> None:
    started = job.cluster.slurmd_start(host)
    job.cluster.on(host, "pkill", "--exact", "slurmd")
    time.sleep(2.0)
    job.cluster.on(host, "sh", "-c", f"setsid slurmd -D -N {host} >/dev/null 2>&1 &")
    until(lambda: job.cluster.slurmd_start(host) != started, lambda: f"slurmd of {host} did not come back")


def restart_controller(job: Any, away_s: float) -> None:
    controller(job, "pkill", "--exact", "slurmctld")
    time.sleep(away_s)
    controller(job, "sh", "-c", "setsid slurmctld -D >/dev/null 2>&1 &")
    until(lambda: is_there(job), lambda: "the controller did not come back")


def is_there(job: Any) -> bool:
    done = subprocess.run(
        [str(Path(__file__).parent / "cluster.sh"), "on", str(job.cluster.folder), "ctl", "scontrol", "ping"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "is UP" in done.stdout


def hang_controller(job: Any) -> None:
    controller(job, "pkill", "--exact", "-STOP", "slurmctld")
    signal_rank(job, "-KILL")
    time.sleep(20.0)
    controller(job, "pkill", "--exact", "-CONT", "slurmctld")


def lose_controller(job: Any) -> None:
    controller(job, "pkill", "--exact", "slurmctld")
    signal_rank(job, "-KILL")
    time.sleep(20.0)
    controller(job, "sh", "-c", "setsid slurmctld -D >/dev/null 2>&1 &")
    until(lambda: is_there(job), lambda: "the controller did not come back")


def signal_rank(job: Any, signal: str) -> None:
    beat = heartbeats(job)[-1]
    job.cluster.on(beat["host"], "kill", signal, str(beat["pid"]))


def stall_disk(job: Any, seconds: float) -> None:
    hold = rules_of(job).with_suffix(".hold")
    hold.touch()
    write_rules(job, "".join(f"{operation} /run/ hold 0 0\n" for operation in ("write", "fsync", "rename", "mkdir")))
    time.sleep(seconds)
    hold.unlink()
    write_rules(job, "")


def fail_disk(job: Any, seconds: float) -> None:
    write_rules(job, "".join(f"{operation} /run/ errno 5 0\n" for operation in ("write", "fsync", "rename", "mkdir")))
    time.sleep(seconds)
    write_rules(job, "")


def rules_of(job: Any) -> Path:
    return Path(job.folder) / "rules"


def write_rules(job: Any, text: str) -> None:
    partial = rules_of(job).with_name("rules.new")
    partial.write_text(text + SLOW_SAVE)
    partial.rename(rules_of(job))


FAULTS = [
    Fault("scontrol requeue", requeue),
    Fault("the time limit", time_limit),
    Fault("scancel --signal=USR2", signal_ranks),
    Fault("--signal=B:USR1", signal_script),
    Fault("power cut of the second host", lambda job: lose_power(job, "node2")),
    Fault("power cut of the first host", lambda job: lose_power(job, "node1")),
    Fault("power cut of both hosts", lambda job: lose_power(job, "node1", "node2")),
    Fault("cable out for 5 s", lambda job: pull_cable(job, 5.0), may_survive=True),
    Fault("cable out for 40 s", lambda job: pull_cable(job, 40.0), may_survive=True),  # while they wait to meet
    Fault("cable out until Slurm gives the host up", lambda job: lose_network(job, "node2"), phases=("step",)),
    Fault("preemption with a grace time of 60 s", preempt),
    Fault("slurmd restarted", lambda job: restart_slurmd(job, "node2"), may_survive=True),
    Fault("controller restarted", lambda job: restart_controller(job, 10.0), may_survive=True),
    Fault("controller hung, and a rank dies", hang_controller),
    Fault("controller away, and a rank dies", lose_controller),
    Fault("disk stalled for 60 s", lambda job: stall_disk(job, 60.0), may_survive=True),
    Fault("disk failing for 60 s", lambda job: fail_disk(job, 60.0)),
    Fault("SIGKILL of a rank", lambda job: signal_rank(job, "-KILL")),
    Fault("SIGSTOP of a rank", lambda job: signal_rank(job, "-STOP")),
]


@pytest.fixture(scope="module")
def start(slurm: Any, run_yaml: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Submit a run whose disk does what its rules say, on two hosts if nothing else is said, and return its job."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, FAULTS_C, "-ldl"], check=True)

    def submit(*options: str, **train: Any) -> Any:
        folder = tmp_path_factory.mktemp("run")
        every = {"save_every_steps": SAVE, "validate_every_steps": VALIDATE, "keep_last": 3}
        run_yaml(folder, **{"steps": STEPS, "hang_timeout_s": 5.0, **every, **train})
        preload = f"--export=ALL,LD_PRELOAD={library},FAULT_RULES={folder}/rules"
        (folder / "rules").write_text(SLOW_SAVE)
        return slurm.submit(*(options or ["-N2"]), "--time=60", preload, TRAIN, "run.yaml", cwd=folder)

    return submit


@pytest.fixture(scope="module")
def undisturbed(start: Callable[..., Any]) -> dict[int, float]:
    job = start()
    for step in range(100, STEPS, 100):
        job.wait_for(lambda step=step: last_step(job) >= step)
    job.wait()
    found = losses(job)
    assert len(found) == STEPS
    return found


def last_step(job: Any) -> int:
    lines = metrics(job)
    return int(lines[-1]["step"]) if lines else 0


def starts(job: Any) -> list[int]:
    """Return the step from which the run was started, each time."""
    return [event["step"] for event in events(job, "start")]


def events(job: Any, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(RunPaths(job.folder / "run")) if event["event"] == name]


def wait_for_phase(job: Any, phase: str) -> None:
    """Wait until the run is in a phase; that of `start` is looked for before the first step."""
    since = last_step(job)

    def is_in_step() -> bool:
        return last_step(job) >= since + 20

    def is_evaluating() -> bool:
        step = last_step(job)
        if step == since or step % VALIDATE:
            return False
        time.sleep(0.1)
        return last_step(job) == step

    def is_saving() -> bool:
        return is_in_step() and any((job.folder / "run" / "checkpoints").glob("step-*[0-9].partial"))

    def is_starting() -> bool:
        return any(beat["phase"] == "load" for beat in heartbeats(job))

    job.wait_for({"start": is_starting, "step": is_in_step, "evaluate": is_evaluating, "save": is_saving}[phase])


def strike(job: Any, fault: Fault, phase: str) -> str:
    """Let a fault happen in a phase, wait for the next new step, and return a row of the table."""
    wait_for_phase(job, phase)
    before, launches, began = last_step(job), len(events(job, "launch")), time.monotonic()
    fault.happen(job)
    ended = time.monotonic()
    enough = last_step(job) + 10
    reached = before

    def has_new_step() -> bool:
        nonlocal reached
        step = last_step(job)
        if len(events(job, "launch")) > launches:
            return step > reached
        reached = max(reached, step)
        return fault.may_survive and step >= enough

    job.wait_for(has_new_step)
    waited = time.monotonic() - began
    again = len(events(job, "launch")) - launches
    lost = reached - starts(job)[-1] if again else 0
    return f"| {fault.name} | {phase} | {ended - began:.0f} | {waited:.0f} | {again} | {lost} |"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_matrix(
    start: Callable[..., Any], undisturbed: dict[int, float], soak_log: Callable[[str], None], fault: Fault
) -> None:
    job = start()
    for phase in fault.phases:
        soak_log(strike(job, fault, phase))
    (job.folder / "run" / "STOP").touch()
    assert job.wait()["ExitCode"] in ("0:0", "75:0"), job.log()
    found = losses(job)
    assert found == {step: undisturbed[step] for step in found}


def test_fault_matrix_of_hosts_that_come_and_go(
    slurm: Any, start: Callable[..., Any], soak_log: Callable[[str], None]
) -> None:
    """One command on three hosts: then there are two, one, and three again, and nobody does anything about it."""
    train = {"steps": 900, "precision": "fp32"}
    quiet = start(**train)
    quiet.wait()
    job = start("-N1-3", "--partition=spare", **train)
    hosts = []
    for lost in ("node3", "node2", "node1", None):
        wait_for_phase(job, "step")
        job.wait_for(lambda: bool(saved_steps(job)))
        hosts.append(events(job, "start")[-1]["world_size"])  # a rank on each
        soak_log(f"step {last_step(job)}: {hosts[-1]} hosts")
        count = len(starts(job))
        if lost == "node1":  # the last of them goes and comes back at once, as the others have in the meantime
            slurm.power_on("node2")
            slurm.power_on("node3")
            cut_power(job, lost)
            slurm.power_on(lost)  # while Slurm still holds the requeued job back
        elif lost:
            cut_power(job, lost)
        job.wait_for(lambda count=count, lost=lost: lost is None or len(starts(job)) > count)
    assert hosts == [3, 2, 1, 3]
    assert job.wait()["ExitCode"] == "0:0"
    # the sums' other order grows with Adam's steps, and the rows are learnt by heart: the last losses are near 0
    assert losses(job) == pytest.approx(losses(quiet), rel=1e-5, abs=5e-5)
    certified = job.cluster.on("node1", "python", "-m", "launch", "verify-resume", "run.yaml", cwd=job.folder)
    soak_log(certified)
    assert "the same to the bit" in certified
