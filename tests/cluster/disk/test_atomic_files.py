"""Files and folders that are whole or absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.disk.atomic_files import whole_file, whole_folder, write_text

ROOT = Path(__file__).resolve().parents[3]
REPLACE = """
import sys
from pathlib import Path
from cluster.disk.atomic_files import whole_folder
with whole_folder(Path(sys.argv[1])) as partial:
    (partial / "a").write_text("new")
"""


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library that kills a process at a rename of our choice."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = ROOT / "tests" / "faults" / "faults.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source, "-ldl"], check=True)
    return library


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), whole_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_a_failed_folder_leaves_the_old_folder_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with whole_folder(folder) as partial:
        (partial / "a").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(folder) as partial:
        (partial / "a").write_text("half")
        raise RuntimeError
    assert (folder / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for content in ("a", "b"):
        with whole_folder(folder) as partial:
            (partial / content).write_text(content)
    assert [p.name for p in folder.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("rule", "survivor"),
    [("rename out.partial kill 0 0", "old"), ("fsync folder kill 0 2", "new")],
    ids=["between the renames", "after both, before the old folder is removed"],
)
def test_a_folder_whose_replacement_was_killed_is_whole_again_at_the_next_attempt(
    tmp_path: Path, faults: Path, rule: str, survivor: str
) -> None:
    folder = tmp_path / "folder" / "out"
    with whole_folder(folder) as partial:
        (partial / "a").write_text("old")
    (tmp_path / "rules").write_text(rule + "\n")
    dying = {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(faults), "FAULT_RULES": str(tmp_path / "rules")}
    killed = subprocess.run([sys.executable, "-c", REPLACE, str(folder)], env=dying, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (folder.parent / "out.old" / "a").read_text() == "old"

    with pytest.raises(RuntimeError), whole_folder(folder):
        raise RuntimeError  # this attempt fails too, and must leave what there was
    assert (folder / "a").read_text() == survivor
    assert [p.name for p in folder.parent.iterdir()] == ["out"]
