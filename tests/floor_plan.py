"""Which room imports which, read from the code, as the floors of a house: `python -m tests.floor_plan`.

A room is a folder of a package, or a file that lies directly in the package. Packages are stacked, and inside a package
a room is on the floor above the highest one that it imports from, so every import points down.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("launch", "training", "data_prep", "cluster")  # from the top down


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def module_of(path: Path) -> str:
    """Return the name that a file is imported by."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Return every module that a file imports, inside functions too; `from a import b` counts as a and as a.b."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names |= {str(name.value) for name in node.args if isinstance(name, ast.Constant)}
    return names


def room_of(path: Path) -> str:
    """Return the package and the room in it, as in training/zero or training/loop."""
    return "/".join(path.relative_to(ROOT).with_suffix("").parts[:2])


def rooms_below() -> dict[str, set[str]]:
    """Return which other rooms each room imports from."""
    rooms = {module_of(path): room_of(path) for path in sources() if module_of(path) not in PACKAGES}
    below: dict[str, set[str]] = {room: set() for room in rooms.values()}
    for path in sources():
        if module_of(path) in rooms:
            below[room_of(path)] |= {rooms[name] for name in imported(path) if name in rooms} - {room_of(path)}
    return below


def floors() -> list[tuple[str, list[str]]]:
    """Return the package and the rooms of each floor, from the ground up; a package stands on the whole one below.

    Raises CycleError where rooms import each other.
    """
    below = rooms_below()
    order = list(TopologicalSorter(below).static_order())
    building: list[tuple[str, list[str]]] = []
    for package in reversed(PACKAGES):
        floor_of: dict[str, int] = {}
        for room in order:
            if room.startswith(f"{package}/"):
                floor_of[room] = max((floor_of[lower] + 1 for lower in below[room] if lower in floor_of), default=0)
        by_floor = defaultdict(list)
        for room, floor in sorted(floor_of.items()):
            by_floor[floor].append(room.partition("/")[2])
        building += [(package, by_floor[floor]) for floor in sorted(by_floor)]
    return building


def floor_plan() -> str:
    """Return a line for each floor from the top down: its number, its package, its rooms."""
    lines = [f"{floor:2}  {package:9}  {', '.join(rooms)}\n" for floor, (package, rooms) in enumerate(floors())]
    return "".join(reversed(lines))


if __name__ == "__main__":
    print(floor_plan(), end="")  # noqa: T201
