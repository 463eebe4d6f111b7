"""Look at several files of some data, and tell which of them are not like the others."""

from __future__ import annotations

import glob
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.config_loading import validate
from cluster.errors import DataError
from data_prep.config import SourceConfig
from data_prep.fetch.local_files import shown
from data_prep.fetch.source_files import files_of
from data_prep.files.formats import Format, format_of, with_html
from data_prep.preview.file_samples import evenly
from data_prep.preview.first_look import FirstLook, look_into
from data_prep.rows.record_shapes import name_list

FILES = 16  # of a folder that are inspected, evenly spread
COLUMN_SETTINGS = ("fields:", "markers:")


@dataclass(frozen=True)
class LookedAt:
    """A file, and what a look into it found."""

    path: Path
    bytes: int
    has_rows: bool
    look: FirstLook

    @property
    def is_open(self) -> bool:
        """Whether its rows need settings."""
        return any(line.startswith(COLUMN_SETTINGS) for line in self.look.lines)


def look_at(data: str, encoding: str | None = None) -> FirstLook:
    """Infer the kind of a file, a folder or a glob from some of its files.

    `encoding` is that of its files, if the user named it. Where files with rows need other settings, `differing` says
    which, and the larger group decides.
    """
    source = validate(SourceConfig, {"path": data, "encoding": encoding}, source="--encoding")
    files = [
        LookedAt(path, path.stat().st_size, form.has_rows, look)
        for path, form in some_files(data)
        if (look := look_into(source, path, form)).kind is not None
    ]
    refused = tuple((file.path.name, file.look.refused) for file in files if file.look.refused)
    readable = [file for file in files if not file.look.refused]
    groups = sorted(alike([file for file in readable if file.has_rows]), key=total, reverse=True)
    main = [file for file in readable if not file.has_rows] + (groups[0] if groups else [])
    sizes = Counter[str]()
    for file in main:
        sizes[str(file.look.kind)] += file.bytes
    is_open = bool(groups and groups[0][0].is_open)
    kind = (
        str(groups[0][0].look.kind) if is_open else max(sizes, key=sizes.__getitem__, default="text" if files else None)
    )
    return FirstLook(
        kind,
        together([file.look for file in main]),
        others=tuple((file.path.name, str(file.look.kind)) for file in main if file.look.kind != kind),
        refused_files=refused if readable else (),
        differing=difference(groups) if len(groups) > 1 else "",
    )


def some_files(data: str) -> Iterator[tuple[Path, Format]]:
    """Yield some files of the data and their formats; nothing if it does not exist here."""
    try:
        named, _ = files_of(SourceConfig(path=data), {})
    except DataError:
        return
    for _, location in evenly(named, min(FILES, len(named))):
        yield location, with_html(format_of(location.name) or Format(), "article")


def total(group: Sequence[LookedAt]) -> int:
    return sum(file.bytes for file in group)


def alike(files: Sequence[LookedAt]) -> list[list[LookedAt]]:
    """Return the files in groups that the same settings may fit."""
    groups: list[list[LookedAt]] = []
    for file in files:
        group = next((group for group in groups if fit(group[0], file)), None)
        if group is None:
            groups.append([file])
        else:
            group.append(file)
    return groups


def fit(one: LookedAt, other: LookedAt) -> bool:
    """Return whether neither file needs settings, or both have half of their columns in common."""
    if one.is_open != other.is_open:
        return False
    mine, theirs = set(one.look.columns), set(other.look.columns)
    if not one.is_open or not (mine and theirs):
        return not one.is_open or one.look.lines == other.look.lines
    return len(mine & theirs) * 2 >= min(len(mine), len(theirs))


def together(looks: Sequence[FirstLook]) -> tuple[str, ...]:
    """Return the lines of YAML for files that are alike: of the first that has any, with the encoding and the speakers
    of the others.
    """
    lines: list[str] = []
    for look in sorted(looks, key=lambda look: not any(line.startswith(COLUMN_SETTINGS) for line in look.lines)):
        own = list(look.lines)
        at = own.index("roles:") if "roles:" in own else len(own)
        roles = [line for line in own[at:] if line not in lines]
        if not lines:
            lines = own
            continue
        if any(line.startswith("encoding:") for line in own) and not any(one.startswith("encoding:") for one in lines):
            end = next(number for number, line in enumerate(own) if line.startswith("encoding:")) + 1
            lines = [*own[:end], *lines]
        lines += roles
    return tuple(lines)


def difference(groups: Sequence[Sequence[LookedAt]]) -> str:
    """Return which files are not like the others, and what to name instead of all."""
    root = os.path.commonpath([file.path.parent for group in groups for file in group])
    told = [f"{shown([file.path.relative_to(root) for file in group])} {held(group[0])}" for group in groups]
    pattern = glob_of(groups[0], [file for group in groups[1:] for file in group])
    such = (
        f", such as --data {shlex.quote(pattern)}" if pattern else " (as a glob in quotes, or in a folder of their own)"
    )
    return f"its files need different settings: {'; '.join(told)}. Name the files that you mean{such}"


def held(file: LookedAt) -> str:
    """Return what a file holds, for a message."""
    if file.look.columns:
        return f"with the columns {name_list(file.look.columns)}"
    return f"with {'running text' if file.look.kind == 'text' else file.look.kind}"


def glob_of(files: Sequence[LookedAt], others: Sequence[LookedAt]) -> str | None:
    """Return a glob for the folder of some files that matches no other; None if there is none."""
    folders = {file.path.parent for file in files}
    depths = {folder.parent for folder in folders}
    name = f"*{glob.escape(files[0].path.suffix)}"
    pattern = None
    if len(folders) == 1:
        pattern = str(Path(glob.escape(str(folders.pop()))) / name)
    elif len(depths) == 1:
        pattern = str(Path(glob.escape(str(depths.pop()))) / "*" / name)
    return None if pattern is None or any(file.path.match(pattern) for file in others) else pattern
