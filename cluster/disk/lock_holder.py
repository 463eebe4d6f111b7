"""The process that holds a lock, as the lock's file says it."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cluster.environment import slurm_job
from cluster.machine import host_name
from cluster.processes import alive_since


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds a lock. `started` is its start in clock ticks since `boot`, as process ids are reused.

    Where rank 0 holds the lock for all ranks, `launch` is what the ranks that were started together have in common.
    """

    host: str
    boot: str
    namespace: int
    pid: int
    started: int
    command: str
    job: str | None = None
    launch: str = ""
    id: str = ""

    @classmethod
    def here(cls, command: str = "", launch: str = "") -> Holder:
        """Return this process as a holder; each call returns one with another `id`."""
        return cls(
            host=host_name(),
            boot=boot_id(),
            namespace=pid_namespace(),
            pid=os.getpid(),
            started=alive_since(os.getpid()) or 0,
            command=command,
            job=slurm_job(),
            launch=launch,
            id=uuid.uuid4().hex[:12],
        )

    @classmethod
    def read(cls, text: str) -> Holder:
        """Return the holder that a lock's text names; an unknown one if a crash cut the text short."""
        try:
            values = json.loads(text)
            return cls(**{f.name: values[f.name] for f in fields(cls)})
        except (ValueError, KeyError, TypeError):
            return cls(host="an unknown host", boot="", namespace=0, pid=0, started=0, command="another process")

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def token(self) -> str:
        """The holder's name within file names."""
        return f"{self.host}-{self.pid}-{self.id}"

    def is_alive(self) -> bool | None:
        """Return whether the process is alive; None if that cannot be seen from here."""
        if (self.boot, self.namespace) != (boot_id(), pid_namespace()):  # a host may change its name
            return None
        return alive_since(self.pid) == self.started

    def described(self) -> str:
        """Return the process as messages name it."""
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino
