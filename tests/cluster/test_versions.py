"""What a start and a checkpoint say of the code that wrote them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from cluster.disk.atomic_files import digest_of, write_json
from cluster.versions import LIBRARIES, as_text, described_commit, versions
from training.checkpoints.layout import Commit, commit_folder, read_commit
from training.run_identity import COMMIT

ROOT = Path(__file__).resolve().parents[2]


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_of_a_checkout_is_told_and_whether_it_was_changed(tmp_path: Path) -> None:
    git(tmp_path, "init")
    assert described_commit(tmp_path) is None
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "one")
    git(tmp_path, "tag", "-am", "a tag", "v1")
    assert described_commit(tmp_path) == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert described_commit(tmp_path) == git(tmp_path, "rev-parse", "HEAD") + "-dirty"
    (tmp_path / "inside").mkdir()
    assert described_commit(tmp_path / "inside") is None


def test_without_git_a_commit_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    assert described_commit(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert described_commit(tmp_path) is None


def test_version_is_told_without_importing_a_library() -> None:
    code = "import sys, launch.__main__ as m\ntry: m.main(['--version'])\nfinally: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    told, imported = result.stdout.splitlines()
    assert told == as_text(versions())
    assert all(f"{name} {version(name)}" in told for name in LIBRARIES)
    assert imported == "False"


def test_a_checkpoint_says_which_versions_wrote_it_and_one_that_says_more_is_read_too(tmp_path: Path) -> None:
    commit = Commit(step=3, progress={}, world_size=1, identity={}, shapes={}, files={})
    folder = tmp_path / "step-000003"
    (tmp_path / "partial").mkdir()
    commit_folder(tmp_path / "partial", folder, commit)
    assert read_commit(folder).versions == versions()
    values = {**json.loads((folder / COMMIT).read_text()), "of a later version": 1}
    del values["digest"]
    write_json(folder / COMMIT, {**values, "digest": digest_of(values)})
    assert read_commit(folder).versions == versions()
