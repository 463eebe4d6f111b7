"""Which folders are checkpoints, and what is said of those that cannot be used. No ranks."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cluster.errors import CheckpointError
from training.checkpoint import (
    COMMIT,
    FORMAT_VERSION,
    Checkpoints,
    Commit,
    check_identity,
    committed_folders,
    newest_checkpoint,
    read_commit,
    set_aside,
)

DATA = "shard-00001-model-00001-of-00001.safetensors"
IDENTITY = {"train.learning_rate": 1e-3, "seed": 0, "data": "abc"}
GOOD = Commit(
    version=FORMAT_VERSION,
    step=5,
    progress={"steps_done": 5},
    world_size=1,
    identity=IDENTITY,
    shapes={"weight": [2, 3]},
    files={DATA: {"bytes": 4, "sha256": "0" * 64}},
)


def write_checkpoint(folder: Path, commit: Commit | str | None = GOOD, content: bytes = b"1234") -> Path:
    """Write a checkpoint's folder; `commit` may be raw text, or None for a folder without one."""
    folder.mkdir(parents=True)
    (folder / DATA).write_bytes(content)
    if commit is not None:
        text = commit if isinstance(commit, str) else json.dumps(asdict(commit))
        (folder / COMMIT).write_text(text)
    return folder


def checkpoints_in(folder: Path) -> Checkpoints:
    def no_weights() -> None:
        raise AssertionError

    return Checkpoints(folder, IDENTITY, first_weights=no_weights)  # type: ignore[arg-type]


def test_only_folders_with_a_commit_file_are_checkpoints_the_oldest_first(tmp_path: Path) -> None:
    for name in ("step-000020", "step-1000000", "step-000005", "step-000030.partial", "step-x", "other-000007"):
        write_checkpoint(tmp_path / name)
    write_checkpoint(tmp_path / "step-000040", commit=None)
    (tmp_path / "step-000050").write_text("a file")
    assert [path.name for path in committed_folders(tmp_path)] == ["step-000005", "step-000020", "step-1000000"]
    assert newest_checkpoint(tmp_path).name == "step-1000000"


def test_a_run_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "step-000030.partial")
    assert checkpoints_in(tmp_path).choose() is None
    assert checkpoints_in(tmp_path / "not there").choose() is None


def test_a_command_that_needs_a_checkpoint_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no checkpoint; run `shardline train RUN\.yaml` first"):
        newest_checkpoint(tmp_path)


def test_the_newest_checkpoint_of_this_run_is_chosen(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "step-000005")
    newest = write_checkpoint(tmp_path / "step-000010", replace(GOOD, step=10))
    assert checkpoints_in(tmp_path).choose() == (newest, replace(GOOD, step=10))


def test_the_newest_checkpoint_up_to_a_step_is_chosen_for_a_replay(tmp_path: Path) -> None:
    older = write_checkpoint(tmp_path / "step-000005")
    write_checkpoint(tmp_path / "step-000010")
    assert checkpoints_in(tmp_path).choose(last=9) == (older, GOOD)
    assert checkpoints_in(tmp_path).choose(last=4) is None


def test_checkpoints_that_a_run_goes_back_from_keep_their_bytes_under_another_name(tmp_path: Path) -> None:
    for _ in range(2):
        for step in (5, 10, 15):
            if not (tmp_path / f"step-{step:06d}").exists():
                write_checkpoint(tmp_path / f"step-{step:06d}")
        set_aside(tmp_path, 10)
    assert [path.name for path in committed_folders(tmp_path)] == ["step-000005"]
    assert sorted(path.name for path in tmp_path.glob("*.rolled-back-*")) == [
        f"step-{step:06d}.rolled-back-{number}" for step in (10, 15) for number in (1, 2)
    ]


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "step-000005")
    (folder / DATA).unlink()
    with pytest.raises(CheckpointError) as caught:
        read_commit(folder)
    assert f"{folder / DATA}: missing, the commit file says 4" in str(caught.value)
    assert f"move {folder} away to use an older one" in str(caught.value)


def test_a_truncated_file_is_named_with_both_sizes(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "step-000005", content=b"123")
    with pytest.raises(CheckpointError, match=rf"{DATA}: 3 bytes, the commit file says 4; move .* away"):
        read_commit(folder)


@pytest.mark.parametrize("text", ["", '{"version": 2, "st', "[]", "3", '{"version": 3}', '{"version": 3, "other": 2}'])
def test_a_commit_file_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    folder = write_checkpoint(tmp_path / "step-000005", commit=text)
    with pytest.raises(CheckpointError, match=rf"{COMMIT}: not a commit file .*; move {folder} away"):
        read_commit(folder)


def test_a_checkpoint_of_another_version_is_told_both_versions(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "step-000005", replace(GOOD, version=99))
    with pytest.raises(CheckpointError, match=f"format version 99, this program reads {FORMAT_VERSION}"):
        read_commit(folder)


def test_a_newer_version_with_keys_of_its_own_is_still_told_to_be_another_version(tmp_path: Path) -> None:
    text = json.dumps({**asdict(GOOD), "version": 99, "layout": "new"})
    with pytest.raises(CheckpointError, match="format version 99"):
        read_commit(write_checkpoint(tmp_path / "step-000005", commit=text))


def test_a_changed_run_is_told_each_changed_key_with_what_it_was_and_is(tmp_path: Path) -> None:
    now = {**IDENTITY, "train.learning_rate": 2e-3, "data": "xyz"}
    with pytest.raises(CheckpointError) as caught:
        check_identity(IDENTITY, now, tmp_path)
    assert f"{tmp_path}: belongs to another run" in str(caught.value)
    assert "train.learning_rate was 0.001, is 0.002; data was 'abc', is 'xyz'" in str(caught.value)
    assert "seed" not in str(caught.value)


def test_the_same_run_is_accepted_after_its_identity_went_through_json(tmp_path: Path) -> None:
    identity = {"rate": 1e-3, "epsilon": 1e-8, "clip": None, "name": "ü", "odd": 0.1 + 0.2}
    check_identity(json.loads(json.dumps(identity)), identity, tmp_path)


def test_a_checkpoint_that_cannot_be_used_is_an_error_for_all_ranks_to_raise(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "step-000005")
    write_checkpoint(tmp_path / "step-000010", content=b"")
    chosen = checkpoints_in(tmp_path).choose()
    assert isinstance(chosen, CheckpointError)
    assert "step-000010" in str(chosen)
