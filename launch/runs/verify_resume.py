"""Prove on this machine that an interrupted run gives the losses of an uninterrupted one, and record the proof.

Three short trainings of the run's own model, data and settings: one uninterrupted; one killed with SIGKILL halfway and
resumed; and the second half of that on another number of ranks. The last two are compared with the first.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.config_loading import dump_yaml
from cluster.disk.atomic_files import digest_of, write_json, write_text
from cluster.disk.lock_holder import Holder
from cluster.disk.run_lock import hold_run
from cluster.errors import EXIT_DONE, EXIT_USER_ACTION, ConfigError
from cluster.journal.records import read_metrics
from cluster.launching.local_launcher import die_with_parent
from cluster.paths import RunPaths
from cluster.wording import count_of
from data_prep.shards import Manifest, read_manifest
from data_prep.shards.attention_work import tells_work
from launch.arguments import add_run, positive
from launch.config import RunConfig
from launch.runs.check import check_fits, local_ranks
from launch.saved_config import load
from launch.wording import say
from training.checkpoints.layout import committed_folders, folder_of
from training.order import Division, order_of

TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}  # of a loss on another number of ranks: sums in another order
DROPOUT = """
if the model has dropout or a router's auxiliary loss, this is why: dropout is drawn for each micro batch, the
auxiliary loss is computed of each, and with these two numbers of ranks micro batches have other rows; with
train.micro_batch_rows: 1, or a global batch that leaves no place empty, they do not"""
PACKAGES = ("torch", "deepspeed", "transformers", "numpy", "pyarrow")


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.add_argument("--steps", type=positive, default=8, help="default: %(default)s")
    command.add_argument("--ranks", type=positive, help="as in `shardline train`")
    command.add_argument(
        "--other-ranks", type=positive, help="ranks of the resharded second half (default: 1; 2 if --ranks is 1)"
    )


def run(options: argparse.Namespace) -> int:
    """Train a few steps with and without an interruption, and compare them."""
    run = load(options)
    check_fits(run, read_manifest(run.shards))
    ranks = local_ranks(run, options.ranks)
    other = options.other_ranks or (1 if ranks > 1 else 2)
    with hold_run(run.paths, Holder.here("shardline verify-resume")):
        certificate = verify_resume(run, options.steps, ranks, other)
    say(f"{as_text(certificate)}\n{run.paths.certificate}")
    same = certificate["bit_identical"] and certificate["other_ranks_within_tolerance"]
    return EXIT_DONE if same else EXIT_USER_ACTION


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One short training in a folder of its own."""

    paths: RunPaths
    yaml: Path

    def start(self, ranks: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "launch", "train", str(self.yaml), "--ranks", str(ranks)]
        with (self.yaml.parent / f"{self.yaml.stem}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent)

    def train(self, ranks: int) -> None:
        """Train to the last step. Raises ConfigError with the path of the log if that fails."""
        self.check(self.start(ranks).wait())

    def check(self, code: int | None) -> None:
        if code != 0:
            raise ConfigError(
                f"a training of this proof ended with exit code {code}; see {self.yaml.with_suffix('.log')}"
            )

    def kill_after(self, step: int, ranks: int) -> None:
        """Train until the checkpoint of a step is committed, then kill every rank."""
        process = self.start(ranks)
        while not any(folder == folder_of(self.paths.checkpoints, step) for folder in self.committed()):
            if process.poll() is not None:
                self.check(process.returncode)
                raise ConfigError("a training of this proof ended before it could be killed; give more --steps")
            time.sleep(0.01)
        process.kill()  # its ranks die with it
        process.wait()

    def committed(self) -> list[Path]:
        return committed_folders(self.paths.checkpoints)

    def lines(self) -> list[dict[str, Any]]:
        return read_metrics(self.paths.metrics)


def make_trial(run: RunConfig, folder: Path, name: str, steps: int) -> Trial:
    """Write the configuration of a short training: the run's with another length and folder."""
    values = run.model_dump(mode="json")
    values |= {"name": name, "folder": str(folder / name), "trackers": []}
    values["data"]["folder"] = str(run.shards.absolute())
    values["train"] |= {"steps": steps, "epochs": None, "save_every_steps": steps // 2, "keep_last": 2}
    values["train"]["keep_every_steps"] = None
    yaml = folder / f"{name}.yaml"
    write_text(yaml, dump_yaml(values))
    return Trial(paths=RunPaths(folder / name), yaml=yaml)


def verify_resume(run: RunConfig, steps: int, ranks: int, other_ranks: int) -> dict[str, Any]:
    """Train and compare; return the certificate, which is also written into the run's folder as resume.json."""
    if steps < 4 or steps % 2:
        raise ConfigError(f"--steps {steps}: give an even number, at least 4")
    folder = run.paths.resume_trials
    shutil.rmtree(folder, ignore_errors=True)
    undisturbed, killed, resharded = (make_trial(run, folder, n, steps) for n in ("undisturbed", "killed", "resharded"))
    undisturbed.train(ranks)
    killed.kill_after(steps // 2, ranks)
    for source in killed.committed():
        if source == folder_of(killed.paths.checkpoints, steps // 2):
            shutil.copytree(source, resharded.paths.checkpoints / source.name)
    killed.train(ranks)
    resharded.train(other_ranks)
    certificate = certificate_of(run, steps, (ranks, other_ranks), (undisturbed, killed, resharded))
    write_json(run.paths.certificate, certificate)
    shutil.rmtree(folder)
    return certificate


def certificate_of(
    run: RunConfig, steps: int, ranks: tuple[int, int], trials: tuple[Trial, Trial, Trial]
) -> dict[str, Any]:
    """Return what was run, the exact bits of every step's figures, and the verdicts."""
    manifest = read_manifest(run.shards)
    order = order_of(manifest, run.train.global_batch_rows, run.seed)
    undisturbed, killed, resharded = (trial.lines() for trial in trials)
    half = steps // 2
    same = [[line["loss"], line["gradient_norm"]] for line in undisturbed]
    difference = max(
        abs(line["loss"] - expected["loss"]) / abs(expected["loss"])
        for line, expected in zip(resharded, undisturbed[half:], strict=True)
    )
    return {
        "steps": steps,
        "killed_after_step": half,
        "ranks": ranks[0],
        "other_ranks": ranks[1],
        "bit_identical": [[line["loss"], line["gradient_norm"]] for line in killed] == same,
        "other_ranks_largest_relative_loss_difference": difference,
        "other_ranks_within_tolerance": difference <= TOLERANCE[run.train.precision],
        "tolerance": TOLERANCE[run.train.precision],
        "micro_batches_have_the_same_rows": have_same_rows(run, manifest, ranks),
        "data": manifest.content_digest,
        "configuration": digest_of(run.model_dump(mode="json", exclude={"name", "folder", "trackers"})),
        "seed": run.seed,
        "machine": platform.platform(),
        "versions": {name: version(name) for name in PACKAGES},
        "rows_of_steps": [rows_digest(order.rows_of_step(step)) for step in range(steps)],
        "undisturbed": bits_of(undisturbed),
        "killed_and_started_again": bits_of(killed),
        "second_half_on_other_ranks": bits_of(resharded),
    }


def have_same_rows(run: RunConfig, manifest: Manifest, worlds: Sequence[int]) -> bool:
    """Return whether micro batches have the same rows with each number of ranks. Dropout is drawn for each of them."""
    rows, at_once = run.train.global_batch_rows, run.train.micro_batch_rows
    counts = {Division(rows=rows, ranks=ranks, micro_batch_rows=at_once).micro_batches for ranks in worlds}
    return at_once == 1 or len(counts) == 1 or not tells_work(manifest)


def rows_digest(rows: Sequence[int]) -> str:
    """Return the sha256 of a step's row numbers, in their order."""
    return hashlib.sha256(",".join(map(str, rows)).encode()).hexdigest()


def bits_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each step's loss, and the bits of loss and gradient norm as big-endian float64 in hex."""
    return [
        {
            "step": line["step"],
            "loss": line["loss"],
            "loss_bits": struct.pack(">d", line["loss"]).hex(),
            "gradient_norm_bits": struct.pack(">d", line["gradient_norm"]).hex(),
        }
        for line in lines
    ]


def as_text(certificate: dict[str, Any]) -> str:
    """Return the verdict in two lines, and a third one if dropout may explain it."""
    half, steps = certificate["killed_after_step"], certificate["steps"]
    same = "the same to the bit" if certificate["bit_identical"] else "NOT the same"
    difference = certificate["other_ranks_largest_relative_loss_difference"]
    is_within = certificate["other_ranks_within_tolerance"]
    within = "within" if is_within else "NOT within"
    remark = "" if is_within or certificate["micro_batches_have_the_same_rows"] else DROPOUT
    ranks, others = (count_of(certificate[key], "rank") for key in ("ranks", "other_ranks"))
    return (
        f"killed after step {half} of {steps} and resumed on {ranks}: losses and gradient"
        f" norms are {same}\nresumed on {others}: losses differ by {difference:.1e} at"
        f" most, {within} {certificate['tolerance']:.0e}{remark}"
    )
