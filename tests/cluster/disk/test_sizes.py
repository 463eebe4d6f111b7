"""Folders are measured while others remove what is in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.disk.sizes import files_below, size_below


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in {"a/one": 3, "a/two": 5, "b/three": 7}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * size)
    return tmp_path


def test_all_files_below_are_counted_and_a_missing_folder_holds_nothing(folder: Path) -> None:
    assert size_below(folder) == 15
    assert size_below(folder / "none") == 0


def test_what_is_removed_while_a_folder_is_measured_is_passed_over(folder: Path) -> None:
    seen = 0
    for path, _ in files_below(folder):
        seen += 1
        for other in folder.rglob("*"):
            if other.is_file() and other != path:
                other.unlink()
    assert seen == 1
