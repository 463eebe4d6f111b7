"""Every path of a run is a property of one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

INSIDE = "./"  # how a path in a kept configuration begins that is inside of the run's folder


@dataclass(frozen=True)
class RunPaths:
    """The folder of one run. Nothing else in the code spells these names."""

    root: Path

    def located(self, text: str) -> Path | str:
        """Return what a text of the kept configuration stands for: a path inside of this folder, or what it says."""
        return self.root / text.removeprefix(INSIDE) if text.startswith(INSIDE) else text

    @property
    def config(self) -> Path:
        """The configuration that the run was prepared or last accepted with; see launch.kept."""
        return self.root / "config.yaml"

    @property
    def shards(self) -> Path:
        """The prepared data, unless `data.folder` names another place."""
        return self.root / "shards"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def metrics(self) -> Path:
        """One JSON object for each step."""
        return self.root / "metrics.jsonl"

    @property
    def segments(self) -> Path:
        """One JSON object for each start and each end of a training process."""
        return self.root / "segments.jsonl"

    @property
    def lock(self) -> Path:
        """Who works here, while somebody does: one training, export or import at a time."""
        return self.root / "run.lock"

    @property
    def heartbeats(self) -> Path:
        """A file for each host: what its ranks do, in which step; one of all hosts; and where the stacks go."""
        return self.root / "heartbeats"

    @property
    def hangs(self) -> Path:
        """A report for each hang, and each host."""
        return self.root / "hangs"

    @property
    def stop_request(self) -> Path:
        """`touch` this file and the run saves a checkpoint and ends."""
        return self.root / "STOP"

    @property
    def certificate(self) -> Path:
        """What `shardline verify-resume` has shown."""
        return self.root / "resume.json"

    @property
    def resume_trials(self) -> Path:
        """The short trainings of `shardline verify-resume`; removed when they have shown it."""
        return self.root / "verify_resume"

    @property
    def export(self) -> Path:
        return self.root / "export"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"
