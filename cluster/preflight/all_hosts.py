"""Run a command on every host of a Slurm job at once, with a deadline, and collect the line of JSON that each prints.

One srun a host: a host that hangs, or that srun cannot reach, is known by name and delays no other.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.environment import child_environment
from cluster.preflight.slurm_facts import without_left_overs

MARK = "SHARDLINE-FACTS "  # before the JSON: a site's profile or srun may print lines too
SRUN = (
    *("srun", "--nodes=1", "--ntasks=1", "--overlap", "--mem=0", "--cpu-bind=none", "--mpi=none", "--input=none"),
    *("--export=ALL", "--unbuffered"),
)
END_S = 2.0  # that an srun has to end its step after TERM
LOST_SRUN = ("Communication", "Unable to contact", "launch failed", "Job step aborted", "Requested node")

Changes = Mapping[str, str | None]


@dataclass
class Answer:
    """What a host has printed so far, when its last facts came, and what srun said of errors."""

    process: subprocess.Popen[bytes]
    errors: Path
    received: bytearray = field(default_factory=bytearray)
    at: float | None = None  # this host's clock when the facts arrived

    def facts(self) -> dict[str, Any] | None:
        """Return the newest facts; None if none came."""
        lines = [line for line in self.received.decode(errors="replace").splitlines() if line.startswith(MARK)]
        return json.loads(lines[-1].removeprefix(MARK)) if lines else None

    def problem(self, within_s: float) -> str:
        """Return why there are no facts, or not all of them."""
        if self.process.returncode is None:
            return f"it did not answer within {within_s:g} s"
        said = [line.strip() for line in self.errors.read_text(errors="replace").splitlines() if line.strip()]
        told = next((line for line in said if any(word in line for word in LOST_SRUN)), said[-1] if said else "")
        return told or f"its command ended with {self.process.returncode} and without an answer"


def ask_hosts(
    hosts: Sequence[str], command: Sequence[str], within_s: float, variables: Callable[[int], Changes] = lambda _: {}
) -> tuple[dict[str, Any], dict[str, str], dict[str, float]]:
    """Run `command` on each host, with `variables(number of the host)` in its environment.

    Returns each host's facts; the problem of each host that ended badly or did not end in time, which may still have
    facts; and when the facts came, in seconds since 1970 by this host's clock.
    """
    with tempfile.TemporaryDirectory(prefix="shardline-doctor-") as folder:
        asked = {}
        try:
            for number, host in enumerate(hosts):
                errors = Path(folder) / str(number)
                asked[host] = Answer(start(host, command, errors, variables(number)), errors)
            receive(asked, time.monotonic() + within_s)
            problems = {host: a.problem(within_s) for host, a in asked.items() if a.process.returncode != 0}
        finally:
            end_all([answer.process for answer in asked.values()])
    facts = {host: found for host, answer in asked.items() if (found := answer.facts()) is not None}
    times = {host: asked[host].at or 0.0 for host in facts}
    problems |= {host: "it ended without facts" for host in hosts if host not in facts and host not in problems}
    return facts, problems, times


def start(host: str, command: Sequence[str], errors: Path, variables: Changes) -> subprocess.Popen[bytes]:
    with errors.open("wb") as stream:
        return subprocess.Popen(
            [*SRUN, f"--nodelist={host}", *command],
            env=child_environment({**without_left_overs(), **variables}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            start_new_session=True,
        )


def receive(asked: Mapping[str, Answer], deadline: float) -> None:
    """Read what the hosts print until all have ended or the time is over."""
    with selectors.DefaultSelector() as selector:
        for answer in asked.values():
            selector.register(answer.process.stdout or -1, selectors.EVENT_READ, answer)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                answer, block = key.data, os.read(key.fd, 1 << 16)
                answer.received += block
                if MARK.encode() in block:
                    answer.at = time.time()
                if not block:
                    selector.unregister(key.fileobj)
    for answer in asked.values():
        with suppress(subprocess.TimeoutExpired):
            answer.process.wait(max(0.0, deadline - time.monotonic()))


def end_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs: TERM lets srun end its step, KILL is for an srun that cannot."""
    for number, patience_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S)):
        running = [process for process in processes if process.poll() is None]
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + patience_s
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.stdout is not None:
            process.stdout.close()
