"""The paths of a run's folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

INSIDE = "./"  # how a saved configuration begins a path inside the run's folder
CHECKPOINT_FOLDER = re.compile(r"step-(\d{6,})")  # the name of a checkpoint's folder
COMMIT_FILE = "commit.json"
RANK_FILE = re.compile(r"(.+-\d+)-(?:nccl-)?rank\d+(?:\.log)?")  # a rank's log, or NCCL's dump, of an attempt


@dataclass(frozen=True)
class RunPaths:
    """The folder of one run and the names in it; checkpoints, shards and the data ledger name their own contents."""

    root: Path

    def located(self, text: str) -> Path | str:
        """Return the path that a saved configuration means by `./...`, inside this folder; other texts as they are."""
        return self.root / text.removeprefix(INSIDE) if text.startswith(INSIDE) else text

    @property
    def config(self) -> Path:
        """The configuration that the run was prepared with, or that training accepted last; see launch.saved_config."""
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
    def attempts(self) -> Path:
        """One JSON object for each event of an attempt: its launch, start and end, and the incidents in between."""
        return self.root / "attempts.jsonl"

    @property
    def older_attempts(self) -> Path:
        """The attempts of a run that an earlier version of Shardline began. Read before `attempts`, never written."""
        return self.root / "segments.jsonl"

    @property
    def excluded_hosts(self) -> Path:
        """The hosts that the run's jobs on Slurm leave out, and why; see cluster.preflight.excluded_hosts."""
        return self.root / "excluded_hosts.json"

    @property
    def lock(self) -> Path:
        """Which process works here now, if any: one training, proof, export or import at a time."""
        return self.root / "run.lock"

    @property
    def heartbeats(self) -> Path:
        """A file for each host: what its ranks do, in which step; one of all hosts; and where the stacks go."""
        return self.root / "heartbeats"

    @property
    def profile(self) -> Path:
        """Traces of the steps that `shardline train --profile` names."""
        return self.root / "profile"

    @property
    def hangs(self) -> Path:
        """A report for each hang, and each host; and with NCCL, the last collectives of each rank."""
        return self.root / "hangs"

    def dumps(self, attempt: str) -> Path:
        """How the names of what NCCL's flight recorder writes begin; a rank's number follows."""
        return self.hangs / f"{attempt}-nccl-rank"

    @property
    def stop_request(self) -> Path:
        """The file that makes a running training save a checkpoint and end: `touch` it."""
        return self.root / "STOP"

    @property
    def certificate(self) -> Path:
        """The result of `shardline verify-resume`."""
        return self.root / "resume.json"

    @property
    def resume_trials(self) -> Path:
        """The short trainings of `shardline verify-resume`; removed when it succeeds."""
        return self.root / "verify_resume"

    @property
    def trackers(self) -> Path:
        """What each tracker has of this run, and the files of those that write to the disk."""
        return self.root / "trackers"

    @property
    def logs(self) -> Path:
        """A log for each rank of an attempt, and those of the jobs that `shardline submit` put into Slurm's queue."""
        return self.root / "logs"

    def rank_log(self, attempt: str, rank: int | str) -> Path:
        """The output of a rank; `*` stands for all. An attempt is named JOB-NUMBER, or local-NUMBER without Slurm."""
        return self.logs / f"{attempt}-rank{rank}.log"

    @property
    def submissions(self) -> Path:
        """For each `shardline submit`: the configuration of its jobs, their ids, the commit and the versions."""
        return self.root / "submissions"

    @property
    def export(self) -> Path:
        return self.root / "export"

    def beside(self, usual: Path, form: Path) -> Path:
        """Return where a file about a form of the export goes, such as export-int8; `usual` for the export itself."""
        name = form.resolve().name
        return usual if form.resolve() == self.export.resolve() else usual.with_stem(f"{usual.stem}-{name}")

    def derived(self, kind: str) -> Path:
        """A folder made from the export: 'int8', 'int4' or 'gguf-TYPE'."""
        return self.root / f"export-{kind}"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def card(self) -> Path:
        """The model card and its picture, as `shardline push` wrote them last."""
        return self.root / "card"

    @property
    def report(self) -> Path:
        return self.root / "report.html"
