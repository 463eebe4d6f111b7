"""Ways in which people start jobs, on a real Slurm: a chain, shells of an allocation, a job in a job, two at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.journal.records import read_lines
from tests.slurm.runs import TRAIN, losses, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["river", "stone", "the", "winter", "a", "light", "house", "walks", "under", "and", "seldom", "green"]
NEW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def worlds(folder: Path) -> list[int]:
    """Return how many ranks each start of a run had."""
    lines = read_lines(folder / "run" / "attempts.jsonl")
    return [line["world_size"] for line in lines if line["event"] == "start"]


def test_one_command_leads_from_a_corpus_to_an_evaluation_and_status_watches_it(slurm: Any, tmp_path: Path) -> None:
    corpus = tmp_path / "a corpus"
    corpus.mkdir()
    for number in range(40):
        words = (WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(400))
        (corpus / f"{number:02d}.txt").write_text(f"{number} " + " ".join(words))
    data = {"sources": [{"path": str(corpus)}], "row_tokens": 64, "validation_fraction": 0.1}
    values = {
        "name": "r",
        "folder": str(tmp_path / "run"),
        "trackers": [],
        "data": {**data, "tokenizer": {"train": {"vocab_size": 600}}},
        "model": {"new": {"config": NEW}},
        "train": {"steps": 200, "global_batch_rows": 8, "micro_batch_rows": 2, "precision": "fp32"},
        "cluster": {"nodes": 2},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    said = slurm.on("ctl", "python", "-m", "launch", "submit", "run.yaml", cwd=tmp_path)
    jobs = [slurm.job(line.split()[2].rstrip(","), tmp_path) for line in said.splitlines()[:4]]
    watched = slurm.on("ctl", "python", "-m", "launch", "status", "run.yaml", "--watch", "1", cwd=tmp_path)
    assert [job.wait()["JobState"] for job in jobs] == ["COMPLETED"] * 4, said
    assert "(r-train, PENDING: Dependency)" in watched and "(r-train, RUNNING)" in watched
    assert "state        finished (exit code 0)" in watched
    assert worlds(tmp_path) == [2]
    evaluated = json.loads((tmp_path / "run" / "evaluation.json").read_text())["models"]
    assert evaluated["tuned"]["loss"] < evaluated["base"]["loss"]


@pytest.fixture
def run(tmp_path: Path, run_yaml: Callable[..., Path]) -> Path:
    """A folder with the YAML of a run."""
    return run_yaml(tmp_path / "a run").parent


@pytest.mark.parametrize("shell", [["bash", "-c"], ["srun", "--nodes=1", "--ntasks=1", "--pty", "bash", "-c"]])
def test_a_shell_in_an_allocation_trains_on_all_its_hosts_and_tasks(slurm: Any, run: Path, shell: list[str]) -> None:
    asked = ["salloc", "--nodes=2", "--ntasks-per-node=2", "--quiet", *shell, f"'{TRAIN}' run.yaml </dev/null"]
    words = " ".join(f'"{word}"' for word in asked)
    slurm.on("node1", "script", "--quiet", "--return", "--command", words, "typescript", cwd=run)  # a terminal
    assert worlds(run) == [4], (run / "typescript").read_text()


def test_a_job_that_is_submitted_in_a_task_of_an_array_requeues_itself_and_not_that_task(slurm: Any, run: Path) -> None:
    inner = f"sbatch --parsable --nodes=2 --output=inner.log '{TRAIN}' run.yaml -o train.steps=400 >inner; sleep 60"
    outer = slurm.submit("--array=3", "--output=outer.log", f"--wrap={inner}", cwd=run)
    until(lambda: (run / "inner").exists() and bool((run / "inner").read_text()), outer.log)
    job = slurm.job((run / "inner").read_text().strip(), run)
    job.wait_for(lambda: (run / "run" / "metrics.jsonl").exists())
    slurm.on("ctl", "scancel", "--signal=USR2", job.number)
    job.wait_for(lambda: job.facts()["Restarts"] == "1")
    assert job.wait()["ExitCode"] == "0:0", (run / "inner.log").read_text()
    assert outer.wait()["Restarts"] == "0"


def test_two_jobs_train_beside_each_other_on_one_host(
    slurm: Any, tmp_path: Path, run_yaml: Callable[..., Path]
) -> None:
    folders = [run_yaml(tmp_path / name).parent for name in ("one", "two")]
    options = ["--nodelist=node1", "--ntasks=2", "--output=train.log"]
    jobs = [slurm.submit(*options, TRAIN, "run.yaml", cwd=folder) for folder in folders]
    assert [job.wait()["ExitCode"] for job in jobs] == ["0:0"] * 2, [job.log() for job in jobs]
    assert [worlds(folder) for folder in folders] == [[2], [2]]
    assert losses(jobs[0]) == losses(jobs[1])


def test_tasks_that_do_not_divide_by_the_hosts_are_ranks_where_slurm_has_put_them(slurm: Any, run: Path) -> None:
    job = slurm.submit("--partition=spare", "--nodes=3", "--ntasks=5", "--output=train.log", TRAIN, "run.yaml", cwd=run)
    assert job.wait()["ExitCode"] == "0:0", (run / "train.log").read_text()
    assert worlds(run) == [5]
