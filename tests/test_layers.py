"""Imports run one way, and heavy libraries stay behind their fences."""

from __future__ import annotations

import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.floor_plan import PACKAGES, ROOT, floor_plan, floors, imported, module_of, sources

MAY_IMPORT = {  # the longest name that a file's own begins with says what else of ours it may import
    "cluster": {"cluster"},
    "data_prep": {"cluster", "data_prep"},
    "data_prep.shards": {"cluster", "data_prep.shards"},  # the contract brings nothing else of data_prep into training
    "training": {"cluster", "training", "data_prep.shards"},
    "launch": set(PACKAGES),
}
FENCED = {  # a library, and the files or the one room that import it
    "ray": {"data_prep/executors.py", "cluster/launching/ray_cluster.py"},
    "deepspeed": {"training/zero"},
}
NEVER_LOADED = {  # by importing every module of these packages
    ("cluster", "data_prep"): ("torch", "deepspeed", "ray"),
    ("training",): ("ray", "data_prep.prepare", "data_prep.read", "data_prep.config"),
}
FILES_A_FOLDER = 13


def is_in(name: str, modules: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    allowed = MAY_IMPORT[max((name for name in MAY_IMPORT if is_in(module_of(path), {name})), key=len)]
    ours = {name for name in imported(path) if is_in(name, set(PACKAGES))}
    assert not {name for name in ours if not is_in(name, allowed)}


@pytest.mark.parametrize("library", FENCED)
def test_a_heavy_library_is_imported_in_its_own_files_only(library: str) -> None:
    users = [path for path in sources() if any(is_in(name, {library}) for name in imported(path))]
    places = {place: [path for path in users if path.is_relative_to(ROOT / place)] for place in FENCED[library]}
    assert all(places.values())
    assert sorted(users) == sorted(path for inside in places.values() for path in inside)


@pytest.mark.parametrize("packages", NEVER_LOADED, ids="+".join)
def test_a_heavy_library_is_not_loaded_by_importing_the_packages(packages: tuple[str, ...]) -> None:
    modules = [module_of(path) for path in sources() if path.relative_to(ROOT).parts[0] in packages]
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules!r}]; print(); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.splitlines()[-1].split())  # after what DeepSpeed says
    assert set(modules) <= loaded
    assert not loaded & set(NEVER_LOADED[packages])


def test_the_imports_of_the_rooms_make_no_circle() -> None:
    assert [package for package, _ in floors()] == sorted((p for p, _ in floors()), key=PACKAGES[::-1].index)


def test_the_imports_of_the_files_make_no_circle() -> None:
    files = {module_of(path): path for path in sources()}
    TopologicalSorter({name: (imported(path) & files.keys()) - {name} for name, path in files.items()}).prepare()


def test_the_floor_plan_in_the_architecture_page_is_the_code() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = re.search(r"^<!-- floor plan -->\n```\w*\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert block is not None
    assert block[1] == floor_plan(), "paste what `python -m tests.floor_plan` prints into docs/architecture.md"


@pytest.mark.parametrize("folder", sorted({path.parent for path in sources()}), ids=lambda folder: folder.name)
def test_a_folder_holds_about_a_dozen_files(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= FILES_A_FOLDER
