"""`shardline tune`: what can be searched, and a study that survives SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError
from cluster.journal.records import read_events, read_lines, write_event
from cluster.paths import RunPaths
from launch.saved_config import load_run
from launch.tuning.space import check_space, read_space
from launch.tuning.study import StudyFolder, optuna, take
from launch.tuning.trial_run import StopSignals, TrialRun
from tests.launch.conftest import ROOT, Result

SPACE = "train.learning_rate: {low: 1e-4, high: 1e-2, log: true}\n"


@pytest.mark.parametrize(
    ("space", "word"),
    [
        ("train.lerning_rate: {low: 1e-5, high: 1e-3}", "did you mean 'learning_rate'"),
        ("train.steps: {low: 1, high: 4000}", "add `int: true`"),
        ("train.schedule: {choices: [cosine, cosin]}", "cosin"),
        ("data.row_tokens: {choices: [64, 128]}", "what is in the shards"),
        ("train.lora.rank: {low: 4, high: 64, int: true}", "no section 'train.lora'"),
        ("train.validation_rows: {choices: [4, 8]}", "no effect on the held-out loss"),
    ],
)
def test_a_key_or_value_that_no_trial_could_use_is_refused_before_the_first(
    run_yaml: Callable[..., Path], tmp_path: Path, space: str, word: str
) -> None:
    (tmp_path / "space.yaml").write_text(space)
    run = load_run(run_yaml(tmp_path))
    with pytest.raises(ConfigError) as refused:
        check_space(read_space(tmp_path / "space.yaml"), run)
    assert word in str(refused.value)


@pytest.mark.parametrize(
    ("space", "word"),
    [
        ("{}", "no keys"),
        ("train.learning_rate: 1e-3", "expected {low"),
        ("train.learning_rate: {low: 1e-3, high: 1e-5}", "not less than"),
        ("train.learning_rate: {low: 0, high: 1e-3, log: true}", "above 0"),
        ("train.warmup_fraction: {low: 0, high: 1, step: 0.3}", "multiple of 'step'"),
    ],
)
def test_a_range_without_values_is_refused(tmp_path: Path, space: str, word: str) -> None:
    (tmp_path / "space.yaml").write_text(space)
    with pytest.raises(ConfigError) as refused:
        read_space(tmp_path / "space.yaml")
    assert word in str(refused.value)


def test_a_trial_above_the_median_is_pruned_but_not_at_its_first_evaluation(tmp_path: Path) -> None:
    study = optuna().create_study(pruner=optuna().pruners.MedianPruner(n_startup_trials=1))
    earlier = study.ask()
    for step, loss in ((5, 1.0), (10, 0.9)):
        earlier.report(loss, step)
    study.tell(earlier, 0.9)
    trial, seen, told = TrialRun(folder=tmp_path, trial=study.ask(), command=[]), dict[int, float](), list[str]()
    for step, is_pruned in ((5, False), (10, True)):
        write_event(trial.paths, "validation", step=step, loss=2.0)
        assert trial.watch(seen, told.append) is is_pruned
    assert told == ["step 5  held-out loss 2.0000", "step 10  held-out loss 2.0000"]


def test_a_new_trial_that_another_process_takes_first_is_left_to_it(tmp_path: Path) -> None:
    folder, study = StudyFolder(tmp_path), optuna().create_study()
    assert folder.trial_lock(0).try_take()
    with ExitStack() as held:
        assert take(study, folder, 2, held) == 1
        assert take(study, folder, 2, held) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_notice_of_slurm_reaches_the_trial(number: signal.Signals) -> None:
    listens = f"trap 'exit 75' {number.name.removeprefix('SIG')}; echo; while :; do sleep 0.05; done"
    signals = StopSignals()
    with signals.installed(), subprocess.Popen(["sh", "-c", listens], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        signals.process = process
        os.kill(os.getpid(), number)
        assert process.wait(120) == 75
    assert not signals.is_interrupted


def test_the_job_array_has_a_task_for_each_trial_and_the_options_of_the_person(
    run_yaml: Callable[..., Path], shardline: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" >"{tmp_path}/submitted"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    yaml, space = run_yaml(tmp_path), tmp_path / "space.yaml"
    space.write_text(SPACE)
    assert shardline("tune", yaml, "--space", space, "--trials", "3", "--slurm=-N2").code == 0
    submitted = (tmp_path / "submitted").read_text().splitlines()
    script = submitted.index(str(ROOT / "launch" / "tune.sh"))
    assert submitted[:script] == ["--array=0-2", "--job-name=tiny-tune", "-N2"]
    assert submitted[script + 1 :] == [str(yaml), f"--space={space}", "--trials=3"]


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_with_the_trial_that_it_was_in(
    run_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    yaml, space = run_yaml(tmp_path, steps=24, cpu_ranks=1, precision="fp32"), tmp_path / "space.yaml"
    space.write_text(SPACE)
    command = [sys.executable, "-m", "launch", "tune", str(yaml), "--space", str(space), "--trials=2"]
    quiet: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    trials = [RunPaths(tmp_path / "run-tune" / f"trial-{number:03}") for number in range(2)]
    process = subprocess.Popen(command, **quiet)
    while len(read_lines(trials[1].metrics)) < 6:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert subprocess.run(command, **quiet, check=False).returncode == 0
    assert [starts(paths) for paths in trials] == [1, 2]
    assert [line["step"] for line in read_lines(trials[1].metrics)] == list(range(1, 25))
    best = load_run(tmp_path / "run-tune" / "best.yaml")
    found = json.loads((tmp_path / "run-tune" / "results.json").read_text())
    assert best.train.learning_rate == found["trials"][found["best"]]["values"]["train.learning_rate"]


def starts(paths: RunPaths) -> int:
    return sum(event["event"] == "start" for event in read_events(paths))
