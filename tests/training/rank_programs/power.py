"""What is left on a disk when the power goes: replays a record of operations and drops what nobody made durable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Node:
    """A file, or a folder with names. What is durable is what an fsync of this very node has seen."""

    is_folder: bool
    size: int = 0
    durable_size: int = 0
    names: dict[str, Node] = field(default_factory=dict)
    durable_names: dict[str, Node] = field(default_factory=dict)

    def sync(self) -> None:
        self.durable_size, self.durable_names = self.size, dict(self.names)


class Disk:
    """The checkpoints' folder `root`; its own name is durable from the start."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = Node(is_folder=True)

    def node(self, path: Path, *, is_folder: bool) -> Node:
        """Return what has this name, made where it is missing."""
        node = self.top
        parts = path.relative_to(self.root).parts
        for number, name in enumerate(parts):
            last = number == len(parts) - 1
            node = node.names.setdefault(name, Node(is_folder=is_folder or not last))
        return node

    def apply(self, operation: str, path: Path, more: str) -> None:
        if operation == "write":
            self.node(path, is_folder=False).size += int(more)
        elif operation == "mkdir":
            self.node(path, is_folder=True)
        elif operation == "fsync":
            self.node(path, is_folder=path.suffix not in (".json", ".safetensors")).sync()
        elif operation == "rename":
            moved = self.node(path.parent, is_folder=True).names.pop(path.name)
            new = Path(more)
            self.node(new.parent, is_folder=True).names[new.name] = moved
        elif operation == "remove":
            self.node(path.parent, is_folder=True).names.pop(path.name)

    def leave(self, folder: Path, originals: Path, *, names_last: bool) -> None:
        """Write what a power cut leaves: the durable bytes, under durable names or, with `names_last`, under all."""
        folder.mkdir(parents=True)
        for path, node in self.walk(self.top, Path(), names_last=names_last):
            if node.is_folder:
                (folder / path).mkdir()
            else:
                step = path.parts[0].partition(".")[0]
                content = (originals / step / path.name.partition(".json")[0]).with_suffix(path_suffix(path))
                (folder / path).write_bytes(content.read_bytes()[: node.durable_size])

    def walk(self, node: Node, path: Path, *, names_last: bool) -> Iterator[tuple[Path, Node]]:
        for name, child in (node.names if names_last else node.durable_names).items():
            yield path / name, child
            yield from self.walk(child, path / name, names_last=names_last)


def path_suffix(path: Path) -> str:
    """Return the suffix of the finished file: commit.json is written under a longer name first."""
    return ".json" if ".json" in path.name else path.suffix
