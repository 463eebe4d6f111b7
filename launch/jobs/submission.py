"""What a submission leaves in the run's folder: the configuration that its jobs use, and the record of the jobs."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.config_loading import dump_yaml
from cluster.disk.atomic_files import digest_of, write_json, write_text
from cluster.machine import host_name
from cluster.paths import RunPaths
from cluster.submission.sbatch import Job
from cluster.versions import ROOT, versions
from launch.config import RunConfig
from launch.saved_config import absolute, absolute_values


@dataclass(frozen=True)
class Snapshot:
    """The resolved configuration, with absolute paths. Its name is its digest, so that it can be told in advance."""

    path: Path
    text: str

    @classmethod
    def of(cls, run: RunConfig) -> Snapshot:
        values = {**absolute_values(run), "folder": absolute(str(run.paths.root))}
        folder = Path(values["folder"])
        return cls(RunPaths(folder).submissions / f"{digest_of(values)[:12]}.yaml", dump_yaml(values))

    def write(self) -> None:
        write_text(self.path, self.text)


@dataclass
class Record:
    """The jobs of one submission, in the file FIRST_JOB.json; it is written anew after each job."""

    snapshot: Snapshot
    facts: dict[str, Any] = field(default_factory=dict)
    jobs: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def begin(cls, snapshot: Snapshot) -> Record:
        """Return a record without jobs, with the time, the code and the environment."""
        found = ((one.metadata["Name"], one.version) for one in importlib.metadata.distributions())
        facts = {
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "host": host_name(),
            "configuration": snapshot.path.name,
            "checkout": str(ROOT),
            "versions": versions(),
            "python": platform.python_version(),
            "packages": dict(sorted({str(name): version for name, version in found}.items())),
        }
        return cls(snapshot, facts)

    def add(self, job: Job, number: str, after: str | None) -> None:
        words = {"stage": job.stage, "job": number, "name": job.name, "after": after}
        self.jobs.append({**words, "command": job.command(after), "variables": job.variables})
        write_json(self.snapshot.path.with_name(f"{self.jobs[0]['job']}.json"), {**self.facts, "jobs": self.jobs})
