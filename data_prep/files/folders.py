"""List the files below a folder or matching a glob: each once, following links, even if the links form cycles."""

from __future__ import annotations

import errno
import fnmatch
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cluster.errors import DataError

BROKEN_LINK = "broken link"  # these are counted among the files passed over
SEEN_FILE = "link to a file that is read already"
SEEN_FOLDER = "link to a folder that is read already"  # a cycle of links too
PAGE_PART = "part of a saved web page"
NO_FILE = "neither file nor folder"


def files_below(folder: Path, left_out: Counter[str]) -> list[Path]:
    """Return the files below a folder that are not hidden, each once; count the others in `left_out`."""
    return each_once((path for path, is_folder in walk(folder, left_out) if not is_folder), folder, left_out)


def files_matching(folder: Path, parts: Sequence[str], left_out: Counter[str]) -> list[Path]:
    """Return the files below a folder that the parts of a glob match, each once; count the others in `left_out`.

    `**` matches any number of folders, and at the end of a glob all files below.
    """
    return each_once(matches(folder, parts, left_out), folder, left_out)


def walk(folder: Path, left_out: Counter[str]) -> Iterator[tuple[Path, bool]]:
    """Yield a folder and everything below it that is not hidden, and whether it is a folder.

    Links to folders are followed last, so that a file in the folder itself is found under its own path.
    """
    seen: set[str] = set()
    links = deque([folder])
    while links:
        folders = deque([links.popleft()])
        while folders:
            current = folders.popleft()
            real = os.path.realpath(current)
            if real in seen:
                left_out[SEEN_FOLDER] += 1
                continue
            seen.add(real)
            yield current, True
            for entry in listed(current):
                if is_hidden(entry.name):
                    continue
                if not leads_to_folder(entry):
                    yield Path(entry.path), False
                else:
                    (links if entry.is_symlink() else folders).append(Path(entry.path))


def matches(folder: Path, parts: Sequence[str], left_out: Counter[str]) -> Iterator[Path]:
    """Yield what the parts of a glob match below a folder; hidden names only if the pattern begins with a dot."""
    if not parts:
        yield folder
        return
    first, *rest = parts
    if first == "**":
        for path, is_folder in walk(folder, left_out):
            if is_folder == bool(rest):
                yield from matches(path, rest, left_out)
    elif set(first) & set("*?["):
        for entry in listed(folder):
            is_named = first.startswith(".") or not is_hidden(entry.name)
            if is_named and fnmatch.fnmatchcase(entry.name, first):
                yield from matches(Path(entry.path), rest, left_out)
    elif os.path.lexists(folder / first):
        yield from matches(folder / first, rest, left_out)


def each_once(paths: Iterable[Path], folder: Path, left_out: Counter[str]) -> list[Path]:
    """Return the paths that are files, sorted; of several paths to one file, the one without a link."""
    base = os.path.realpath(folder)
    folders: dict[Path, str] = {}
    real: dict[Path, tuple[bool, str]] = {}  # whether the path contains a link, and its real path
    for path in paths:
        if path.parent not in folders:
            folders[path.parent] = os.path.realpath(path.parent)
        above = folders[path.parent]
        place = os.path.realpath(path) if path.is_symlink() else os.path.join(above, path.name)  # noqa: PTH118
        is_link = path.is_symlink() or above != str(Path(base, path.parent.relative_to(folder)))
        real[path] = is_link, place
    found: dict[str, Path] = {}
    for path, (is_link, place) in sorted(real.items(), key=lambda item: (item[1][0], item[0].as_posix())):
        if path.is_file():
            if found.setdefault(place, path) != path:
                left_out[SEEN_FILE] += 1
        elif not path.is_dir():
            left_out[BROKEN_LINK if is_link and path.is_symlink() else NO_FILE] += 1
    return sorted(found.values(), key=lambda path: path.as_posix())


def parts_of_saved_pages(names: Sequence[Path]) -> dict[Path, str]:
    """Return the files that a browser saved with a page (page.html, page_files/): layout, not documents."""
    pages = {name.with_suffix("") for name in names if name.suffix.lower() in (".html", ".htm")}
    return {
        name: PAGE_PART
        for name in names
        if any(
            above.name.endswith("_files") and above.with_name(above.name.removesuffix("_files")) in pages
            for above in name.parents
        )
    }


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """Return a folder's entries, sorted. Raises DataError if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except NotADirectoryError:
        return []
    except OSError as error:
        if error.errno == errno.ELOOP:
            return []
        raise DataError(
            f"{folder}: this folder cannot be listed ({error.strerror}); fix that, or leave it out"
        ) from None


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link to itself is not."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def readable_name(name: str) -> str:
    """Return a file's name as valid text: bytes that are not UTF-8, and then also backslashes, as \\\\xNN."""
    if not any("\udc80" <= character <= "\udcff" for character in name):
        return name
    return os.fsencode(name.replace("\\", "\\x5c")).decode("utf-8", "backslashreplace")


def name_on_disk(name: str) -> str:
    """Return the file name from which `readable_name` made a text."""
    encoded = name.encode()
    parts = encoded.split(b"\\x")
    decoded = parts[0] + b"".join(bytes([int(part[:2], 16)]) + part[2:] for part in parts[1:])
    return os.fsdecode(decoded)
