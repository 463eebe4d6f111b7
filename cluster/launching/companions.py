"""Processes beside the ranks that only watch: they get the CPU time that is left over, and nothing waits for them.

A companion ends when its standard input does. It dies with this process, however that ends.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster.environment import child_environment
from cluster.launching.local_launcher import die_with_parent

log = logging.getLogger(__name__)

END_S = 15.0  # the time that companions have to end by themselves, all together
TOLD_S = 2.0  # a wait that is longer is told
NICENESS = 19
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@dataclass
class Companions:
    """Running companions by name. `end_s` may be set to less when there is no time."""

    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    end_s: float = END_S

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a companion; a host that cannot is told, and the ranks do without."""
        try:
            self.processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                env=child_environment(NO_GPU),
                process_group=0,  # Ctrl-C is for the ranks
                preexec_fn=step_back,
            )
        except OSError as error:
            log.warning("%s was not started: %s", name, error)

    def end(self) -> None:
        """Ask all to end, wait `end_s` for them, and kill those that have not."""
        began = time.monotonic()
        for process in self.processes.values():
            if process.stdin is not None:
                process.stdin.close()
        told = False
        while running := [name for name, process in self.processes.items() if process.poll() is None]:
            waited_s = time.monotonic() - began
            if waited_s > self.end_s:
                log.warning("ended before it had sent everything: %s", ", ".join(running))
                break
            if waited_s > TOLD_S and not told:
                told = True
                log.info("waiting up to %g s for: %s", self.end_s, ", ".join(running))
            time.sleep(0.02)

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


def step_back() -> None:
    """In a new process: leave the CPU to others, and die with the parent."""
    os.nice(NICENESS)
    die_with_parent()


@contextmanager
def companions(commands: Mapping[str, Sequence[str]]) -> Iterator[Companions]:
    """Run these commands, by name, beside what happens in the context. Call it on the main thread."""
    beside = Companions()
    try:
        for name, command in commands.items():
            beside.start(name, command)
        yield beside
        beside.end()
    finally:
        beside.kill()
