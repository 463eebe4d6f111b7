"""Every path of a run is a property of one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunPaths:
    """The folder of one run. Nothing else in the code spells these names."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration of the last command that wrote into the run."""
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
