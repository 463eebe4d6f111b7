"""One training, export or import at a time in a run's folder; whoever comes second changes nothing in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.disk.lock_holder import Holder
from cluster.disk.locks import LockFile
from cluster.disk.run_lock import hold_run, hold_run_for_rank, wait_for_first_rank
from cluster.errors import ClusterError
from cluster.heartbeats.heartbeat_files import launch_of
from cluster.machine import host_name
from cluster.network.world import World
from cluster.paths import RunPaths
from launch.runs.train import check_and_note
from launch.saved_config import load_run

Command = Callable[..., Any]  # returns a Result: see conftest.py
ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND = (
    World(rank=rank, size=2, local_rank=rank, local_size=2, master=("127.0.0.1", 29511)) for rank in range(2)
)


@pytest.fixture
def yaml(tmp_path: Path, run_yaml: Callable[..., Path]) -> Path:
    return run_yaml(tmp_path)


@pytest.fixture
def busy(yaml: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunPaths]:
    """A run in which another command is running, and has written what a training writes."""
    monkeypatch.setattr(LockFile, "touch", lambda lock: True)  # it would change a time while a second command starts
    paths = RunPaths(yaml.parent / "run")
    paths.heartbeats.mkdir(parents=True)
    for path, text in {paths.config: "name: t\n", paths.plan: "{}", paths.stop_request: ""}.items():
        path.write_text(text)
    (paths.heartbeats / "rank-00000.json").write_text("{}")
    paths.metrics.write_text('{"step": 1}\n')
    paths.attempts.write_text('{"event": "launch", "time": "now", "reached": 0}\n')
    with hold_run(paths, Holder.here("shardline train")):
        yield paths


def state(paths: RunPaths) -> dict[Path, Any]:
    """Return every file and folder of a run, with its bytes and the time it was written."""
    return {
        path: (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in [paths.root, *paths.root.rglob("*")]
    }


@pytest.mark.parametrize(
    "words",
    [
        ["prepare"],
        ["train"],
        ["export"],
        ["verify-resume"],
        ["checkpoint", "convert", "--from-deepspeed", "somewhere"],
    ],
    ids=" ".join,
)
def test_who_comes_second_is_told_who_works_and_leaves_every_byte(
    yaml: Path, busy: RunPaths, shardline: Command, words: list[str]
) -> None:
    before = state(busy)
    verb = words[:2] if words[0] == "checkpoint" else words[:1]
    result = shardline(*verb, yaml, *words[len(verb) :])
    result.assert_refused(f"`shardline train` is already running here: process {os.getpid()} on ")
    assert f"to save and stop it: touch {busy.stop_request}" in result.err
    assert state(busy) == before


@pytest.mark.parametrize("rank", ["0", "1"])
def test_each_rank_of_another_launcher_ends_with_2_by_itself_before_it_touches_a_file(
    yaml: Path, busy: RunPaths, shardline_process: Command, rank: str
) -> None:
    before = state(busy)
    world = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}
    result = shardline_process("train", yaml, **world)
    assert result.code == 2
    assert ("is already running here" in result.err) == (rank == "0")  # the first one says it for all
    assert state(busy) == before


def test_a_rank_whose_launcher_holds_the_run_may_work_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, holder = RunPaths(tmp_path / "run"), Holder.here("shardline train")
    monkeypatch.setenv("SHARDLINE_LOCK", holder.id)
    with hold_run(paths, holder), hold_run_for_rank(paths, SECOND, "shardline train"):
        pass
    with (
        pytest.raises(ClusterError, match="the command that started this rank no longer holds it"),
        hold_run_for_rank(paths, SECOND, "shardline train"),
    ):
        pass


def test_the_other_ranks_wait_until_the_first_one_holds_the_run(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    with pytest.raises(ClusterError, match="rank 0 did not take it within 0 s"):
        wait_for_first_rank(paths, launch_of(SECOND), patience_s=0.0)
    with hold_run_for_rank(paths, FIRST, "shardline train"), hold_run_for_rank(paths, SECOND, "shardline train"):
        assert Holder.read(paths.lock.read_text()).launch == "127.0.0.1:29511"
    assert not paths.lock.exists()


def test_a_folder_that_was_made_for_the_lock_alone_goes_again(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    with hold_run(paths, Holder.here("shardline export")):
        assert paths.lock.exists()
    assert not paths.root.exists()


def test_a_job_is_not_refused_by_an_earlier_launch_of_its_own(
    tmp_path: Path, run_yaml: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm has ended the ranks that held the run on another host: they do not touch their lock any more."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    yaml, paths = run_yaml(tmp_path), RunPaths(tmp_path / "run")
    paths.root.mkdir()
    paths.lock.write_text(replace(Holder.here("shardline train"), host="node9", boot="another").text)
    then = paths.lock.stat().st_mtime - 31
    os.utime(paths.lock, (then, then))
    holders: list[str] = []
    check_and_note(load_run(yaml), lambda: holders.append(Holder.read(paths.lock.read_text()).host))
    assert holders == [host_name()] and not paths.lock.exists()


@pytest.mark.parametrize("verb", ["train", "export"])
def test_ctrl_c_while_another_host_is_looked_at_ends_with_130(yaml: Path, verb: str) -> None:
    paths = RunPaths(yaml.parent / "run")
    paths.root.mkdir()
    paths.lock.write_text(replace(Holder.here("shardline train"), host="node9", boot="another").text)
    command = [sys.executable, "-m", "launch", verb, str(yaml)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "checking for up to 120 s whether it is alive" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert (process.returncode, "Traceback" in said) == (130, False)
    assert "interrupted" in said


def test_a_training_that_is_refused_for_its_checkpoint_leaves_every_byte(
    yaml: Path, shardline: Command, write_checkpoint: Callable[..., Path]
) -> None:
    import torch

    paths = RunPaths(yaml.parent / "run")
    write_checkpoint(paths.checkpoints, {"w": torch.zeros(4)}, step=5, **{"train.learning_rate": 0.5})
    (paths.checkpoints / "step-000006.partial").mkdir()
    paths.config.write_text("name: t\n")
    before = {path: facts[0] for path, facts in state(paths).items()}
    shardline("train", yaml).assert_refused("train.learning_rate was 0.5, is 0.001", f"--from {paths.root}")
    assert {path: facts[0] for path, facts in state(paths).items()} == before


def test_the_kept_holder_reads_back(tmp_path: Path) -> None:
    holder = Holder.here("shardline export", "node1:20000")
    assert Holder.read(holder.text) == holder
    assert json.loads(holder.text)["command"] == "shardline export"
