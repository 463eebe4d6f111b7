"""Ray over the hosts of a Slurm job: the same bytes as on one machine, whatever happens to a host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.paths import RunPaths
from data_prep.config import DataConfig
from data_prep.prepare import prepare
from data_prep.shards import Manifest, read_manifest
from tests.slurm.runs import until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["river", "stone", "the", "winter", "a", "light", "house", "walks", "under", "and", "seldom", "green"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus of 60 slices that differ, of which each takes a worker a moment."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(60):
        words = (WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(20_000))
        (folder / f"{number:02d}.txt").write_text(f"{number} " + " ".join(words), encoding="utf-8")
    return folder


def data_values(corpus: Path) -> dict[str, object]:
    return {
        "sources": [{"path": str(corpus)}],
        "row_tokens": 128,
        "slice_bytes": 50_000,
        "tokenizer": {"train": {"vocab_size": 600}},
    }


def run_file(folder: Path, corpus: Path) -> Path:
    path = folder / "run.json"  # JSON is YAML
    run = {"name": "r", "folder": str(folder / "run"), "data": data_values(corpus), "model": {"new": {}}}
    path.write_text(json.dumps(run), encoding="utf-8")
    return path


def on_one_machine(folder: Path, corpus: Path) -> Manifest:
    config = DataConfig.model_validate({**data_values(corpus), "executor": "local", "workers": 1})
    return prepare(config, folder / "alone", None, 0)


@pytest.mark.soak  # two minutes, most of them until Ray gives the host up
def test_a_host_that_loses_its_power_changes_not_a_byte(slurm: Any, tmp_path: Path, corpus: Path) -> None:
    alone = on_one_machine(tmp_path, corpus)
    work = RunPaths(tmp_path / "run").shards / "work"
    before = set(Path("/tmp").glob("ray-*"))  # of an earlier session that was killed, whose jobs had the same numbers
    run = run_file(tmp_path, corpus)
    job = slurm.submit("-N2", "--cpus-per-task=1", str(ROOT / "launch/prepare.sh"), str(run), cwd=tmp_path)
    job.wait_for(lambda: len(list(work.glob("*.arrow"))) >= 4)
    slurm.unplug("node2")  # first, as nobody says goodbye when the power goes
    slurm.power_off("node2")
    try:
        job.wait_for(lambda: "next: shardline train" in job.log())
    finally:
        slurm.power_on("node2")
    assert job.wait()["JobState"] == "COMPLETED", job.log()
    assert set(Path("/tmp").glob(f"ray-{job.number}-*")) <= before
    assert read_manifest(tmp_path / "run/shards").digest == alone.digest


def test_a_host_that_is_lost_when_the_job_starts_is_named_and_does_not_cost_the_job(
    slurm: Any, tmp_path: Path, corpus: Path
) -> None:
    alone = on_one_machine(tmp_path, corpus)
    run = run_file(tmp_path, corpus)
    slurm.unplug("node2")
    try:
        job = slurm.submit("-N2", "--cpus-per-task=1", str(ROOT / "launch/prepare.sh"), str(run), cwd=tmp_path)
        job.wait_for(lambda: "next: shardline train" in job.log())
    finally:
        slurm.plug_in("node2")
    assert job.wait()["JobState"] == "COMPLETED", job.log()
    assert "Ray: 1 of 2 hosts joined within 18 s; continuing without node2" in job.log()
    assert read_manifest(tmp_path / "run/shards").digest == alone.digest


def test_a_cancelled_job_leaves_nothing_of_ray_on_its_hosts(slurm: Any, tmp_path: Path, corpus: Path) -> None:
    run = run_file(tmp_path, corpus)
    before = set(Path("/tmp").glob("ray*"))
    job = slurm.submit("-N2", "--cpus-per-task=1", str(ROOT / "launch/prepare.sh"), str(run), cwd=tmp_path)
    job.wait_for(lambda: bool(list(RunPaths(tmp_path / "run").shards.glob("work/*.arrow"))))
    slurm.on("ctl", "scancel", job.number)
    assert job.wait()["JobState"] == "CANCELLED"
    until(lambda: set(Path("/tmp").glob("ray*")) <= before, lambda: f"left: {set(Path('/tmp').glob('ray*')) - before}")


def test_a_second_one_in_the_same_allocation_starts_a_ray_of_its_own(slurm: Any, tmp_path: Path, corpus: Path) -> None:
    run = run_file(tmp_path, corpus)
    prepare = f"'{ROOT}/launch/prepare.sh' '{run}' -o folder=one && '{ROOT}/launch/prepare.sh' '{run}' -o folder=two"
    slurm.on(
        "ctl", "salloc", "-N2", "--cpus-per-task=1", "bash", "-c", f"({prepare}) >log 2>&1 || cat log", cwd=tmp_path
    )
    one, two = (read_manifest(tmp_path / name / "shards").digest for name in ("one", "two"))
    assert one == two, (tmp_path / "log").read_text()
