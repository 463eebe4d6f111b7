"""`shardline prepare --under-slurm`, which launch/prepare.sh becomes in a Slurm job: Ray over the hosts of the job.

Each host has an srun of its own, so that one which is lost, or never starts, takes nothing with it. The first host's
runs the command itself beside Ray's head: a container then needs no /tmp that it shares with another.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from cluster.environment import RAY_HOSTS, patience, rank_words, slurm_variables
from cluster.errors import EXIT_INTERRUPTED, ClusterError
from cluster.launching.ray_host import PORT_IN_USE
from cluster.launching.stop_request import remembered_signals
from cluster.slurm.controller import Controller
from cluster.slurm.decision import SRUN_BACK_OFF_S
from cluster.slurm.job import SlurmJob, read_job
from cluster.slurm.srun_output import SrunOutput
from cluster.slurm.step import StepEnd, end, ended, start
from launch.ranks.slurm_job import ENTER, UNDER_SLURM

log = logging.getLogger(__name__)

PORTS = 10  # that a job may try: another prepare.sh in the same `salloc` may have some
LOOK_S = 0.2
AGAIN_S = 1.0  # after which hosts are asked to end again: while they start, they ignore it
END_S = 15.0  # that they have to end their Ray


def prepare_in_job() -> int:
    """Run this command on Ray over all hosts of this job; return its exit code."""
    job = read_job(slurm_variables(), "prepare.sh", lambda number: Controller(str(number), patience()).record())
    controller = Controller(job.name, patience())
    hosts = controller.hosts(job.node_list)
    with remembered_signals() as asked:
        return RayJob(job, hosts, controller.addresses(hosts[:2]), patience(), asked).run()


@dataclass
class HostStep:
    """The srun of one host."""

    name: str
    process: subprocess.Popen[bytes]
    output: SrunOutput
    is_told: bool = False

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None


@dataclass
class RayJob:
    """Starts the hosts of one Ray cluster, waits for the first one's command, and ends them."""

    job: SlurmJob
    hosts: list[str]
    addresses: list[str]
    """Of the first hosts."""
    patience: float
    asked: list[int]
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    """Without it, anybody on the network could run code as this user."""

    def run(self) -> int:
        """Return the command's exit code. Where srun itself fails on the first host, it is called again for minutes."""
        place = 0
        for pause_s in (*SRUN_BACK_OFF_S, None):
            ended_with = self.run_once(place)
            while ended_with.code == PORT_IN_USE and not self.asked and place + 1 < PORTS:
                place += 1
                ended_with = self.run_once(place)
            if self.asked:
                return EXIT_INTERRUPTED if signal.SIGINT in self.asked else 128 + self.asked[0]
            if not ended_with.is_own:
                return ended_with.code
            if pause_s is not None:
                told = "srun could not start Ray on %s (%s): trying again in %.0f s"
                log.warning(told, self.hosts[0], ended_with.cause, pause_s * self.patience)
                self.pause(pause_s * self.patience)
        raise ClusterError(f"srun could not start Ray on {self.hosts[0]}: {ended_with.cause}; look at `sinfo -R`")

    def run_once(self, place: int) -> StepEnd:
        """Start all hosts and run the command; return how the first host's srun ended."""
        port = 20000 + (self.job.number * 10 + self.job.restarts + place) % 10000
        folder = Path(f"/tmp/ray-{self.job.number}-{os.getpid()}")  # another prepare.sh of this job has its own
        steps: list[HostStep] = []
        try:
            for host, cpus in zip(self.hosts, self.job.cpus, strict=True):
                steps.append(self.start_host(host, cpus, port, folder))
            while not steps[0].is_over and not self.asked:
                self.tell_lost(steps[1:])
                time.sleep(LOOK_S)
        finally:
            end_all(steps)
            # where Slurm has killed this host's task before it could clean up
            shutil.rmtree(folder, ignore_errors=True)
        return ended(steps[0].process, steps[0].output)

    def start_host(self, host: str, cpus: int, port: int, folder: Path) -> HostStep:
        process, output = start(self.command(host, cpus, port, folder), self.variables())
        return HostStep(host, process, output)

    def command(self, host: str, cpus: int, port: int, folder: Path) -> list[str]:
        options, python = rank_words()
        srun = ["srun", "--export=ALL", "--mpi=none", "--overlap", "--no-kill", f"--nodelist={host}", "--nodes=1"]
        size = ["--ntasks=1", f"--cpus-per-task={cpus}"]
        ours = [f"--name={host}", f"--hosts={','.join(self.addresses)}", f"--cpus={cpus}", f"--port={port}"]
        words = [word for word in sys.argv[1:] if word != UNDER_SLURM] if host == self.hosts[0] else []
        run = ["-m", "launch", *words, "-o", "data.executor=ray"] if words else []
        enter = ["sh", "-c", ENTER, str(Path.cwd())]
        module = ["-m", "cluster.launching.ray_host"]
        return [*srun, *size, *options, *enter, *python, *module, *ours, f"--folder={folder}", "--", *run]

    def variables(self) -> dict[str, str | None]:
        """Return the changes to the environment of the hosts."""
        return {
            RAY_HOSTS: " ".join(self.hosts),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "SLURM_STDERRMODE": None,  # srun must pass on what the hosts write, or they seem never to have begun
            "SLURM_DISTRIBUTION": None,
            "SLURM_HOSTFILE": None,
        }

    def tell_lost(self, steps: list[HostStep]) -> None:
        """Warn, once for each, of hosts whose Ray has ended."""
        for step in steps:
            if step.is_over and not step.is_told:
                step.is_told = True
                log.warning("Ray on %s ended with %d: continuing without it", step.name, step.process.returncode)

    def pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.asked and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_S))


def end_all(steps: list[HostStep]) -> None:
    """End the hosts' tasks: by USR2 through srun, as at a TERM it would kill them before they have cleaned up.

    What has not ended then is on a host that is lost.
    """
    deadline, again_at = time.monotonic() + END_S, 0.0
    while (left := [step for step in steps if not step.is_over]) and time.monotonic() < deadline:
        if time.monotonic() >= again_at:
            for step in left:
                os.kill(step.process.pid, signal.SIGUSR2)
            again_at = time.monotonic() + AGAIN_S
        time.sleep(LOOK_S / 4)
    for step in steps:
        end(step.process)
