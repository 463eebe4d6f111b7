"""A real Slurm cluster of two hosts and a spare one, for as long as the tests of this folder run: see cluster.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.runs import until

CLUSTER = Path(__file__).parent / "cluster.sh"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter", "setpriv", "ss")
PACKAGES = "slurmctld slurmd slurm-client munge iproute2 util-linux procps"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")


@dataclass(frozen=True)
class Job:
    """A batch job, its log, and the folder it was submitted in."""

    cluster: Slurm
    number: str
    folder: Path

    def facts(self) -> dict[str, str]:
        """Return what Slurm says about the job: JobState, Restarts, ExitCode ..."""
        text = self.cluster.on("ctl", "scontrol", "--oneliner", "show", "job", self.number)
        return dict(fact.split("=", 1) for fact in text.split() if "=" in fact)

    def log(self) -> str:
        path = next(self.folder.glob(f"shardline*-{self.number}.log"), self.folder / "none")
        return path.read_text(encoding="utf-8") if path.exists() else "(no log)"

    def describe(self) -> str:
        return f"waited in vain for job {self.number}: {self.facts()}\n{self.log()}"

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true of a job that has not ended; it need not be true for long."""
        came: list[bool] = []

        def is_over() -> bool:
            came.append(condition())
            return came[-1] or self.has_ended()

        until(is_over, self.describe)
        assert came[-1] or condition(), f"the job ended before that\n{self.log()}"

    def has_ended(self) -> bool:
        return self.facts()["JobState"] in ENDED

    def wait(self) -> dict[str, str]:
        """Wait until the job is out of the queue for good, and return its facts."""
        until(self.has_ended, self.describe)
        return self.facts()


@dataclass(frozen=True)
class Slurm:
    """The cluster: hosts ctl, node1 and node2; and node3, which only jobs in the partition `spare` get."""

    folder: Path

    def on(self, host: str, *command: str, cwd: Path | None = None) -> str:
        """Run a command on a host, in this environment with our Python activated, and return what it wrote."""
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VIRTUAL_ENV": sys.prefix,
            "SHARDLINE_PREFLIGHT": "off",  # test_bad_hosts.py has its own environment
            "SHARDLINE_PATIENCE": "0.3",  # else a step must be gone for 30 s before its srun is ended
        }
        result = subprocess.run(
            [str(CLUSTER), "on", str(self.folder), host, *command],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, f"{command}: {result.stderr}"
        return result.stdout

    def do(self, verb: str, host: str) -> None:
        subprocess.run([str(CLUSTER), verb, str(self.folder), host], check=True)

    def power_off(self, host: str) -> None:
        """End every process of a host at once."""
        self.do("power-off", host)

    def power_on(self, host: str) -> None:
        """Start a host again, and wait until Slurm has heard from it."""
        started = self.slurmd_start(host)
        self.do("power-on", host)
        until(
            lambda: self.slurmd_start(host) != started,
            lambda: f"{host} did not come back: {self.on('ctl', 'sinfo', '--long')}",
        )

    def slurmd_start(self, host: str) -> str:
        """Return when the host's slurmd began, as Slurm knows it."""
        text = self.on("ctl", "scontrol", "--oneliner", "show", "node", host)
        return text.partition("SlurmdStartTime=")[2].split()[0]

    def unplug(self, host: str) -> None:
        """Pull the network cable of a host; its processes and the disk keep running."""
        self.do("unplug", host)

    def plug_in(self, host: str) -> None:
        self.do("plug-in", host)

    def submit(self, *arguments: str, cwd: Path) -> Job:
        """Run sbatch in a folder."""
        return self.job(self.on("ctl", "sbatch", "--parsable", *arguments, cwd=cwd).strip(), cwd)

    def job(self, number: str, cwd: Path) -> Job:
        """Return a job that was submitted in a folder."""
        return Job(self, number, cwd)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if os.geteuid() != 0 or missing:
        reason = f"run as root, after: apt-get install -y {PACKAGES}  (missing: {', '.join(missing) or 'root'})"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    folder = tmp_path_factory.mktemp("slurm")
    with (folder / "cluster.log").open("wb") as log:
        cluster = subprocess.Popen([str(CLUSTER), "run", str(folder), "3"], stdout=log, stderr=subprocess.STDOUT)
    try:
        until(
            lambda: (folder / "ready").exists() or cluster.poll() is not None,
            lambda: f"the nodes did not come up:\n{(folder / 'cluster.log').read_text()}",
        )
        assert cluster.poll() is None, (folder / "cluster.log").read_text()
        yield Slurm(folder)
    finally:
        cluster.kill()
        cluster.wait()
