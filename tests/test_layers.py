"""Imports run one way, and heavy libraries stay behind their fences."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cluster", "data_prep", "training", "launch")
MAY_IMPORT = {
    "cluster": {"cluster"},
    "data_prep": {"cluster", "data_prep"},
    "training": {"cluster", "training", "data_prep.shards"},
    "launch": set(PACKAGES),
}
FENCED = {
    "ray": {"data_prep/executors.py", "cluster/ray_cluster.py"},
    "deepspeed": {
        "training/zero/engine.py",
        "training/zero/model.py",
        "training/zero/zero12.py",
        "training/zero/nvme.py",
    },
}


def imported(path: Path) -> set[str]:
    """Return every module that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    allowed = MAY_IMPORT[path.relative_to(ROOT).parts[0]]
    ours = {name for name in imported(path) if name.partition(".")[0] in PACKAGES}
    wrong = {name for name in ours if not any(name == ok or name.startswith(ok + ".") for ok in allowed)}
    assert not {name for name in wrong if not is_parent_of_allowed(name, allowed)}


def is_parent_of_allowed(name: str, allowed: set[str]) -> bool:
    """`from data_prep.shards import X` is seen as data_prep.shards and data_prep.shards.X, never as data_prep alone."""
    return any(ok.startswith(name + ".") for ok in allowed) and name != "data_prep"


@pytest.mark.parametrize("library", FENCED)
def test_a_heavy_library_is_imported_in_its_own_files_only(library: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in sources()
        if any(name.partition(".")[0] == library for name in imported(path))
    }
    assert users
    assert users <= FENCED[library]


def test_preparing_and_cluster_need_no_torch_to_be_imported() -> None:
    modules = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for path in sources()
        if path.relative_to(ROOT).parts[0] in ("cluster", "data_prep") and path.name != "__init__.py"
    ]
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules!r}]; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def room_of(path: Path) -> str:
    """Return the room that a file lies in: a folder of a package, or the file itself where it lies in the package."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2])


def arrows() -> dict[str, set[str]]:
    """Return which rooms each room imports from."""
    rooms = {".".join(path.relative_to(ROOT).with_suffix("").parts): room_of(path) for path in sources()}
    rooms |= {name.removesuffix(".__init__"): room for name, room in rooms.items() if name.endswith(".__init__")}
    found: dict[str, set[str]] = {}
    for path in sources():
        used = {rooms[name] for name in imported(path) if name in rooms and name.count(".") > 0}
        found.setdefault(room_of(path), set()).update(used - {room_of(path)})
    return found


def test_the_imports_of_the_rooms_make_no_circle() -> None:
    TopologicalSorter(arrows()).prepare()


@pytest.mark.parametrize("folder", sorted({path.parent for path in sources()}), ids=lambda folder: folder.name)
def test_a_folder_holds_about_a_dozen_files(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 13
