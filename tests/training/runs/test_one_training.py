"""Real ranks: one training at a time in a folder, Ctrl-C, and more training on the same data."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.processes import process_state
from launch.saved_config import load_run
from tests.training.rank_programs.bits import exact, weights
from training.checkpoints.layout import newest_checkpoint, read_commit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CONSTANT = {"schedule": "constant", "warmup_fraction": 0.0, "save_every_steps": 3}
KEPT = ("config.yaml", "plan.json", "heartbeats/rank-00000.stacks")


def state(run: Any) -> dict[str, bytes]:
    return {name: (run.paths.root / name).read_bytes() for name in KEPT}


def under_way(run: Any) -> bool:
    return len(run.steps()) > 2


@contextmanager
def started(run: Any, ranks: int) -> Iterator[subprocess.Popen[str]]:
    """Train until the context ends; the ranks die with their launcher."""
    process = run.start(ranks=ranks)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_training_is_refused_while_one_runs_and_starts_at_once_after_its_death(
    short_run: Callable[..., Any],
) -> None:
    run = short_run(**CONSTANT, steps=10**6)
    with started(run, ranks=1) as first:
        run.watch(first, under_way)
        before, steps = state(run), len(run.steps())
        # one rank: torchrun ends the others with the first of them, which may be before rank 0 has said why
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
        by_another_launcher = run.launch([*torchrun, "-m", "launch", "train", str(run.yaml)])
        assert run.train("-o", "train.steps=7", ranks=1) == 2
        assert by_another_launcher.wait() != 0
        run.watch(first, lambda run: len(run.steps()) > steps)  # it has gone on
        assert state(run) == before
        assert [len(run.events(name)) for name in ("launch", "start", "no-start", "end")] == [1, 1, 0, 0]
        assert run.log.read_text().count(f"is already running here: process {first.pid} on ") == 2
        run.kill(first, under_way)
    with started(run, ranks=1) as again:
        run.watch(again, lambda run: len(run.events("start")) == 2)
        again.send_signal(signal.SIGINT)
        assert again.wait() == 75  # the first Ctrl-C saves
    assert newest_checkpoint(run.paths.checkpoints).name == f"step-{run.steps()[-1]:06d}"
    assert not run.paths.lock.exists()


def test_a_second_ctrl_c_ends_the_ranks_at_once_and_counts_as_a_person_s(short_run: Callable[..., Any]) -> None:
    run = short_run(**CONSTANT, steps=10**6)
    with started(run, ranks=2) as process:
        run.watch(process, lambda run: len(list(run.paths.heartbeats.glob("rank-*.stacks"))) == 2)
        ranks = run.ranks(process)
        for number in range(2):
            run.signal_rank(process, number, signal.SIGSTOP)  # they cannot listen
        run.watch(process, lambda run: {process_state(rank) for rank in ranks} == {"T"})
        process.send_signal(signal.SIGINT)
        run.watch(process, lambda run: all(pending(rank, signal.SIGINT) for rank in ranks))
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        run.wait_for_death(ranks)
    assert [event["exit_code"] for event in run.events("no-start")] == [130]


def pending(pid: int, number: signal.Signals) -> bool:
    """Return whether a stopped process has been sent a signal."""
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool((int(lines["SigPnd"], 16) | int(lines["ShdPnd"], 16)) >> (number - 1) & 1)


@pytest.fixture(scope="module")
def longer(short_run: Callable[..., Any]) -> Any:
    """A run of 6 steps that was trained on to 9."""
    run = short_run(**CONSTANT, steps=6)
    assert run.train(ranks=1) == 0
    assert run.train("-o", "train.steps=9", ranks=1) == 0
    return run


def test_a_run_that_was_trained_on_has_the_bits_of_one_that_was_so_long_from_the_start(
    longer: Any, short_run: Callable[..., Any]
) -> None:
    whole = short_run(**CONSTANT, steps=9)
    assert whole.train(ranks=1) == 0
    assert longer.steps() == list(range(1, 10))
    assert (exact(longer), weights(longer)) == (exact(whole), weights(whole))
    (told,) = longer.events("length")
    assert (told["changed"], told["total_steps"]) == ({"train.steps": [6, 9]}, 9)
    commit = read_commit(newest_checkpoint(longer.paths.checkpoints))
    assert (commit.identity["train.steps"], json.loads(longer.paths.plan.read_text())["total_steps"]) == (9, 9)


def test_a_copy_begins_a_new_run_from_its_own_export_and_leaves_the_original_as_it_was(
    longer: Any, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(longer.paths.root, tmp_path / "copy"))
    before = state(longer)
    command = [sys.executable, "-m", "launch"]
    assert longer.launch([*command, "export", str(copy)]).wait() == 0, longer.log.read_text()
    new = tmp_path / "new.yaml"
    train = {"steps": 2, "global_batch_rows": 8, "precision": "fp32"}
    new.write_text(json.dumps({"name": "new", "folder": str(tmp_path / "new"), "train": train}))
    begun = longer.launch([*command, "train", str(new), "--from", str(copy), "--ranks", "1"])
    assert begun.wait() == 0, longer.log.read_text()
    assert load_run(tmp_path / "new").model.path == f"{copy}/export"
    assert (
        longer.launch([*command, "train", str(tmp_path / "new"), "--ranks", "1"]).wait() == 0
    )  # it is whole by itself
    assert state(longer) == before and not longer.paths.export.exists()
