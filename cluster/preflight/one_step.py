"""Run a command on all hosts of a job by one srun, with a deadline, and collect the facts that each host prints.

The output of all hosts comes through one pipe. srun keeps lines of up to 1 KiB whole, so facts travel as short lines.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from cluster.environment import child_environment
from cluster.preflight.all_hosts import SRUN, end_all
from cluster.preflight.slurm_facts import without_left_overs

PIECE = 600  # characters
POLL_S = 0.05
LINE = re.compile(r"SHARDLINE-PIECE (\S+) (\d+)/(\d+) ([0-9a-f]{8}) ([A-Za-z0-9+/=]+)")
STAY = ("--no-kill", "--kill-on-bad-exit=0", "--wait=0")  # a host that is lost, or fails, ends no other one's task
LABEL = "--label"  # the number of its task before each line
NOT_HERE = ("--nodes=1", "--ntasks=1", "--unbuffered")  # that one would mix the lines of several hosts


def printed(host: str, facts: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that carry a host's facts; `host` is Slurm's name of it."""
    text = base64.b64encode(zlib.compress(json.dumps(facts).encode())).decode()
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    for number, piece in enumerate(pieces, start=1):
        yield f"SHARDLINE-PIECE {host} {number}/{len(pieces)} {checksum(piece)} {piece}"


def checksum(piece: str) -> str:
    return f"{zlib.crc32(piece.encode()):08x}"


def facts_in(text: str) -> dict[str, dict[str, Any]]:
    """Return the facts of each host all of whose lines are there, and whole."""
    pieces: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    for host, number, count, its_checksum, piece in LINE.findall(text):
        if checksum(piece) == its_checksum:
            pieces.setdefault(host, {})[int(number)] = piece
            counts[host] = int(count)
    found = {}
    for host, its in pieces.items():
        if its.keys() == set(range(1, counts[host] + 1)):
            joined = "".join(its[number] for number in sorted(its))
            found[host] = json.loads(zlib.decompress(base64.b64decode(joined)))
    return found


@dataclass(frozen=True)
class Answers:
    """The facts of the hosts that gave them, and the lines that srun and the tasks wrote to standard error.

    `is_late` says that srun had not ended in time.
    """

    facts: dict[str, dict[str, Any]]
    said: list[str]
    is_late: bool

    def problem(self, host: str, within_s: float) -> str:
        """Return why a host gave no facts: what was said about it, if anything."""
        name = re.compile(rf"(?<![\w.-]){re.escape(host)}(?![\w-])")
        if about := [line for line in self.said if name.search(line)]:
            number = re.search(r": task (\d+): ", about[0])  # its own last words tell more than srun's of its end
            own = [line for line in self.said if number and re.match(rf"\s*0*{number[1]}: ", line)]
            return own[-1].split(": ", 1)[1] if own else about[0]
        if self.is_late:
            return f"it did not answer within {within_s:g} s"
        return self.said[-1] if self.said else "its command ended without an answer"


def ask_together(
    hosts: Sequence[str],
    options: Sequence[str],
    command: Sequence[str],
    within_s: float,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Answers:
    """Run `command` on the hosts at once, by one srun with more `options`.

    Who has not answered in time, or before the job was asked to stop, is missing.
    """
    layout = (f"--nodes={len(hosts)}", f"--ntasks={len(hosts)}", "--ntasks-per-node=1", f"--nodelist={','.join(hosts)}")
    is_late = False
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        srun = subprocess.Popen(
            [*(word for word in SRUN if word not in NOT_HERE), *STAY, LABEL, *layout, *options, *command],
            env=child_environment(without_left_overs()),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + within_s
            while srun.poll() is None and not (is_late := is_stopping() or time.monotonic() > deadline):
                time.sleep(POLL_S)
        finally:
            end_all([srun])
        said = [line for line in text_of(errors).splitlines() if line.strip()]
        return Answers(facts_in(text_of(output)), said, is_late)


def text_of(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")
