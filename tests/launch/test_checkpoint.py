"""`shardline checkpoint`: a person sees which checkpoints there are, which are whole, and what to do next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training.checkpoints.layout import folder_of, set_aside

Command = Callable[..., Any]  # returns a Result: see conftest.py
WEIGHTS = {"layer.weight": torch.arange(15.0).reshape(5, 3), "layer.bias": torch.arange(5.0)}


@pytest.fixture
def run(tmp_path: Path, run_yaml: Callable[..., Path], write_checkpoint: Callable[..., Path]) -> Path:
    """A run with whole checkpoints of steps 5 and 10."""
    yaml = run_yaml(tmp_path)
    for step in (5, 10):
        write_checkpoint(tmp_path / "run" / "checkpoints", WEIGHTS, step=step, seed=3)
    return yaml


def folder(run: Path, step: int) -> Path:
    return folder_of(run.parent / "run" / "checkpoints", step)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_the_list_tells_whole_ones_from_damaged_and_from_those_set_aside(run: Path, shardline: Command) -> None:
    (folder(run, 5) / "master-00000-of-00002.safetensors").unlink()
    set_aside(folder(run, 10), "its sha256 is wrong")
    folder(run, 15).with_suffix(".partial").mkdir()
    shardline("checkpoint", "list", run)
    result = shardline("checkpoint", "list", run)
    header, damaged, partial, aside, reason = result.out.splitlines()
    assert result.code == 0
    assert header.split() == ["step", "written", "(UTC)", "ranks", "size", "state"]
    assert damaged.split()[0] == "5" and "cannot be used" in damaged and "of-00002.safetensors: missing" in damaged
    assert partial.startswith("step-000015.partial: not a checkpoint")
    assert aside.endswith("set_aside/step-000010: not read any more")
    assert reason.strip() == "its sha256 is wrong"


def test_a_run_without_checkpoints_is_told_how_to_get_one(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command
) -> None:
    yaml = run_yaml(tmp_path)
    assert f"holds no checkpoint; next: shardline train {yaml}" in shardline("checkpoint", "list", yaml).out
    shardline("checkpoint", "verify", yaml).assert_refused(f"holds no checkpoint; run `shardline train {yaml}` first")


def test_every_byte_is_read_and_damage_makes_the_exit_code_2(run: Path, shardline: Command) -> None:
    assert shardline("checkpoint", "verify", run).code == 0
    flip_a_bit(folder(run, 5) / "master-00001-of-00002.safetensors")
    damaged, whole = shardline("checkpoint", "verify", run), shardline("checkpoint", "verify", run, "10")
    assert (damaged.code, whole.code) == (2, 0)
    assert (
        f"{folder(run, 5)}/master-00001-of-00002.safetensors: its sha256 is not the one in commit.json" in damaged.out
    )
    assert f"next: `shardline train {run}` sets it aside and uses an older one" in damaged.out
    assert f"{folder(run, 10)}: " in damaged.out and "every byte is as it was committed" in whole.out


def test_a_checkpoint_is_shown_with_its_run_files_and_parameters(run: Path, shardline: Command) -> None:
    newest, chosen = shardline("checkpoint", "show", run), shardline("checkpoint", "show", run, "5")
    assert "10 steps taken, 10 updates; steps skipped: none" in newest.out
    assert "5 steps taken, 5 updates" in chosen.out
    words = [line.split() for line in chosen.out.splitlines()]
    assert ["seed", "3"] in words and ["layer.weight", "[5,", "3]"] in words
    assert "master-00001-of-00002.safetensors" in chosen.out


def test_a_checkpoint_is_kept_until_it_is_not(run: Path, shardline: Command) -> None:
    assert shardline("checkpoint", "keep", run, "5").code == 0
    assert (folder(run, 5) / "keep").is_file()
    listed = shardline("checkpoint", "list", run).out.splitlines()
    assert [line.endswith("whole, kept") for line in listed[1:]] == [True, False]
    assert shardline("checkpoint", "unkeep", run, "5").code == 0
    assert not (folder(run, 5) / "keep").exists()


@pytest.mark.parametrize("action", ["verify", "show", "keep", "unkeep"])
def test_a_step_without_a_checkpoint_is_told_those_that_there_are(run: Path, shardline: Command, action: str) -> None:
    shardline("checkpoint", action, run, "7").assert_refused("holds no checkpoint of step 7; there are: 5, 10")


def test_a_checkpoint_of_an_older_format_is_never_read_as_this_one(run: Path, shardline: Command) -> None:
    commit = folder(run, 10) / "commit.json"
    commit.write_text('{"version": 2, "step": 10, "skipped": [], "world_size": 1, "shapes": {}, "files": {}}')
    shardline("checkpoint", "show", run, "10").assert_refused("format version 2, this program reads 3")
    verified = shardline("checkpoint", "verify", run, "10")
    assert verified.code == 2
    assert "format version 2, this program reads 3" in verified.out
    assert "sets it aside" not in verified.out


def test_a_folder_that_deepspeed_did_not_write_is_refused_and_nothing_is_left(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command
) -> None:
    (tmp_path / "empty").mkdir()
    result = shardline("checkpoint", "convert", run_yaml(tmp_path), "--from-deepspeed", tmp_path / "empty")
    result.assert_refused(f"{tmp_path / 'empty'}: holds no checkpoint of DeepSpeed's ZeRO")
    assert not (tmp_path / "run").exists()
