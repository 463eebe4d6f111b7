"""Questions to Slurm's controller, which may be down or hung for minutes: no answer is not an answer."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.environment import child_environment
from cluster.errors import ClusterError
from cluster.network.interfaces import is_known
from cluster.wording import count_of

log = logging.getLogger(__name__)

ANSWER_S = 30.0  # after which a question that is not answered is given up
LOOK_S = 10.0  # the same for one that is asked beside srun, whose end is not seen meanwhile
TRIES = 60  # of a question that must be answered, PAUSE_S apart: a restart of the controller takes minutes
PAUSE_S = 10.0
FEW = 6  # tries of a question that the job can do without
REFUSAL = "refused"
NODES = re.compile(r"\bNodes=(\S+) CPU_IDs=\S* Mem=\d+ GRES=(\S*)")
GPUS = re.compile(r"\bgpu(?::[^:,(]+)?:(\d+)")  # gpu:2(IDX:0-1), gpu:h200:8(IDX:0-7)
REFUSED = re.compile(r"Invalid job id|disabled|denied|is pending|complet|Job can not")  # answers that stay as they are


@dataclass(frozen=True)
class JobFacts:
    """What Slurm says about a job; both are None if it said nothing."""

    state: str | None = None
    reason: str | None = None

    @property
    def may_run(self) -> bool:
        """Return whether the job runs, as far as is known."""
        return self.state in (None, "RUNNING")


@dataclass(frozen=True)
class Controller:
    """Asks about one job. `patience` is a factor on the pauses between two tries."""

    job: str
    patience: float = 1.0

    def facts(self) -> JobFacts:
        """Return the state of the job, after minutes without an answer an unknown one."""
        found = self.record()
        return (
            JobFacts() if found is None else JobFacts(state=found.get("JobState", "GONE"), reason=found.get("Reason"))
        )

    def tasks(self) -> int | None:
        """Return how many tasks sbatch was told, or how many hosts if it was told none; None if Slurm does not tell."""
        told = (self.record() or {}).get("NumTasks", "")
        return int(told) if told.isdecimal() else None

    def record(self) -> dict[str, str] | None:
        """Return what Slurm knows about the job, nothing if it does not know it; None without an answer for minutes."""
        told = self.ask_until_answered("scontrol", "show", "job", self.job)
        if told is None:
            return None
        records = [record_in(part) for part in told.split("\n\n")]  # an array's number is that of one of its tasks too
        ours = [record for record in records if self.job in (record.get("JobId"), name_in(record))]
        return (ours or records)[0] if len(records) == 1 or ours else {}

    def requeue(self) -> bool:
        """Put the job back into the queue; return whether Slurm did."""
        return self.ask_until_answered("scontrol", "requeue", self.job) not in (None, REFUSAL)

    def hosts(self, node_list: str) -> list[str]:
        """Return the names in a list like a[01-03,7],b2."""
        told = self.ask_until_answered("scontrol", "show", "hostnames", node_list)
        if not told or told == REFUSAL:
            raise ClusterError(f"`scontrol show hostnames {node_list}` failed; its reason is above")
        return told.split()

    def addresses(self, hosts: Sequence[str]) -> list[str]:
        """Return what hosts reach each other by: their names, or Slurm's addresses of them if a name is not known here.

        Some sites name their nodes in slurm.conf only.
        """
        if all(map(is_known, hosts)):
            return list(hosts)
        told = [self.ask_until_answered("scontrol", "show", "node", host, tries=FEW) or "" for host in hosts]
        return [record_in(text).get("NodeAddr", host) for host, text in zip(hosts, told, strict=True)]

    def gpus(self, tries: int = TRIES) -> dict[str, int]:
        """Return how many GPUs the job has on each host; empty if this Slurm does not tell, or not in time."""
        told = self.ask_until_answered("scontrol", "--details", "show", "job", self.job, tries=tries) or ""
        found = {}
        for nodes, resources in NODES.findall(told):
            for host in self.hosts(nodes):
                found[host] = sum(int(count) for count in GPUS.findall(resources))
        return found

    def steps(self, number: int) -> set[str] | None:
        """Return the names of the job's steps; None without an answer."""
        told = ask("squeue", "--steps", "--noheader", "--format=%j", f"--jobs={number}", within_s=LOOK_S)
        return None if told in (None, REFUSAL) else set(str(told).split())

    def kill_step(self, number: int, name: str) -> None:
        """Kill the ranks of the job's step of this name, if Slurm answers and has it."""
        told = ask("squeue", "--steps", "--noheader", "--format=%i %j", f"--jobs={number}", within_s=LOOK_S)
        for line in [] if told in (None, REFUSAL) else str(told).splitlines():
            step, _, its_name = line.strip().partition(" ")
            if its_name.strip() == name:
                ask("scancel", "--signal=KILL", step, show=True, within_s=LOOK_S)

    def end_time(self) -> int | None:
        """Return when the time limit ends the job, in seconds since 1970; None without a limit, or an answer.

        Slurm sets SLURM_JOB_END_TIME from 23.02 on only, and does not change it when the limit is changed.
        """
        told = self.ask_until_answered("squeue", "--noheader", "--format=%e", f"--jobs={self.job}", tries=FEW) or ""
        return int(told) if told.strip().isdecimal() else None

    def ask_until_answered(self, *command: str, tries: int = TRIES) -> str | None:
        """Return what Slurm answers, asking again for ten minutes, or less; None if it never does."""
        deadline = time.monotonic() + tries * PAUSE_S  # a controller that hangs takes up to ANSWER_S for each try
        for number in range(tries):
            if number:
                time.sleep(PAUSE_S * self.patience)
            if (told := ask(*command, show=number in (0, tries - 1))) is not None:
                return told
            if time.monotonic() > deadline:
                break
            if not number:
                minutes = count_of(round(tries * PAUSE_S / 60), "minute")
                log.warning("no answer to `%s`: asking again for %s", " ".join(command), minutes)
        return None


def record_in(text: str) -> dict[str, str]:
    """Return the record of a job or a node.

    Of a name that is there twice, the first: words of the user's follow Slurm's own.
    """
    parts = [part.split("=", 1) for part in text.split() if "=" in part]
    return {name: value for name, value in reversed(parts)}


def name_in(record: dict[str, str]) -> str:
    """Return the name of the task of an array that a record is about, as in 5_3."""
    return f"{record.get('ArrayJobId')}_{record.get('ArrayTaskId')}"


def ask(*command: str, show: bool = False, within_s: float = ANSWER_S) -> str | None:
    """Return what a command of Slurm writes; REFUSAL if Slurm refused it; None without an answer."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within_s,
            process_group=0,
            preexec_fn=ignore_stops,
            env=child_environment({"SLURM_TIME_FORMAT": "%s"}),  # seconds since 1970, whatever the site or user has set
        )
    except FileNotFoundError:
        raise ClusterError(f"{command[0]}: not found; the programs of Slurm must be on PATH inside the job") from None
    except subprocess.TimeoutExpired:
        return None
    if done.returncode == 0:
        return done.stdout
    refused = REFUSED.search(done.stderr) is not None
    if refused or show:
        log.warning("%s", done.stderr.strip() or f"{command[0]} ended with {done.returncode}")
    return REFUSAL if refused else None


def ignore_stops() -> None:
    """Ignore what a requeue or scancel sends to all processes of a job: the question must come through."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
