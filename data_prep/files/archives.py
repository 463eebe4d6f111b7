"""Unpack zip and tar files: every member becomes a file, or carries the reason why it cannot be read."""

from __future__ import annotations

import errno
import json
import logging
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from cluster.disk.atomic_files import sha256_of, whole_folder
from cluster.wording import count_of
from data_prep.files.bounded_io import (
    CHUNK_BYTES,
    EXPANSION_FREE_BYTES,
    EXPANSION_RATIO,
    RecordError,
    open_stream,
    require_whole,
)
from data_prep.files.damaged_zips import CutMember, cut_members
from data_prep.files.folders import readable_name
from data_prep.files.formats import Format, format_of

log = logging.getLogger(__name__)

SEPARATOR = "!/"  # between an archive's name and its member's, in the manifest
MEMBERS = 100_000  # in one archive; each becomes a file on disk, and most disks have a quota of files
CONTENTS = "contents.json"
UNPACKING = "3"  # part of the folder's name: raise it when the choice of members changes
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One member: its name in the archive, and its file's name in the cache or the reason why it has none."""

    name: str
    file: str | None = None
    problem: str | None = None


class Budget:
    """How many bytes an archive may still unpack to, and its members' format, if the source gives one."""

    def __init__(self, archive: Path, given: str | None) -> None:
        self.given = given
        self.left = max(EXPANSION_FREE_BYTES, EXPANSION_RATIO * archive.stat().st_size)
        self.members = 0
        self.names: set[str] = set()

    def copy(self, source: IO[bytes] | CutMember, target: Path) -> None:
        """Copy a member. Raises RecordError when the archive exceeds its limit."""
        with target.open("wb") as sink:
            while chunk := source.read(CHUNK_BYTES):
                self.left -= len(chunk)
                if self.left < 0:
                    raise RecordError(f"expands more than {EXPANSION_RATIO}-fold")
                sink.write(chunk)


def unpack(archive: Path, form: Format, cache: Path, given: str | None = None) -> tuple[list[Member], Path]:
    """Return an archive's members, sorted, and the folder that holds their files; unpack it only once.

    A member's path is never used as a path on disk, so none can escape the folder. Members of unknown formats are
    listed but not unpacked. `given` is the format of all members that are not archives.
    """
    folder = cache / "-".join([sha256_of(archive)[:32], UNPACKING, *([given] if given else [])])
    if not (folder / CONTENTS).exists():
        with whole_folder(folder) as partial:
            members = sorted(unpacked(archive, form, partial, given), key=lambda member: member.name)
            (partial / CONTENTS).write_text(json.dumps([asdict(member) for member in members]), encoding="utf-8")
        found = [member for member in members if member.name]
        damage = "".join(f"; {member.problem}" for member in members if not member.name)
        log.info("unpacked %s: %s%s", archive, count_of(len(found), "member"), damage)
    return contents_of(folder), folder


def contents_of(folder: Path) -> list[Member]:
    return [Member(**values) for values in json.loads((folder / CONTENTS).read_text(encoding="utf-8"))]


def find_member(archive: Path, name: str, cache: Path) -> Path | None:
    """Return the file of a member by its name in the manifest; None if it has not been unpacked."""
    for contents in sorted(cache.glob(f"{sha256_of(archive)[:32]}*/{CONTENTS}")):
        for member in contents_of(contents.parent):
            if member.file is not None and readable_name(member.name) == name:
                return contents.parent / member.file
    return None


def unpacked(archive: Path, form: Format, folder: Path, given: str | None) -> Iterator[Member]:
    """Write an archive's members as files; damage ends the list with a member that has no name."""
    budget = Budget(archive, given)
    try:
        if form.kind == "zip":
            yield from zip_members(archive, budget, folder)
        else:
            yield from tar_members(archive, form.compression, budget, folder)
    except RecordError as objection:
        yield Member(name="", problem=str(objection))
    except DAMAGE as error:
        yield Member(name="", problem=described(error))


def zip_members(archive: Path, budget: Budget, folder: Path) -> Iterator[Member]:
    try:
        zipfile.ZipFile(archive).close()
    except zipfile.BadZipFile:
        yield from members_before_damage(archive, budget, folder)
        raise
    with zipfile.ZipFile(archive) as container:
        for info in container.infolist():
            if info.is_dir():
                continue
            is_link = (info.external_attr >> 28) == 0xA  # S_IFLNK, as Unix writes it
            problem = "encrypted" if info.flag_bits & 1 else "a link, not a file" if is_link else None
            member = plan_member(info.filename, problem, budget)
            if member.file is not None:
                try:
                    with container.open(info) as source:
                        budget.copy(source, folder / member.file)
                except DAMAGE as error:
                    (folder / member.file).unlink(missing_ok=True)
                    member = Member(name=member.name, problem=described(error))
            yield member


def members_before_damage(archive: Path, budget: Budget, folder: Path) -> Iterator[Member]:
    """Yield the intact members of a zip without its directory, up to the first that is damaged or of unknown length.

    Links are not recognized: only the directory marks them.
    """
    with archive.open("rb") as file:
        members = cut_members(file)
        while True:
            try:
                member = next_member(next(members), budget, folder)
            except (StopIteration, EOFError, zlib.error, ValueError):
                return  # the caller raises the damage
            if member is not None:
                yield member


def next_member(source: CutMember, budget: Budget, folder: Path) -> Member | None:
    """Write a member of a truncated zip; None for a folder. Raises EOFError, zlib.error or ValueError on damage."""
    if source.name.endswith("/"):
        source.skip()
        return None
    problem = "encrypted" if source.is_encrypted else None if source.is_readable else "compressed by an unknown method"
    member = plan_member(source.name, problem, budget)
    if member.file is None:
        source.skip()
        return member
    target = folder / member.file
    try:
        budget.copy(source, target)
    except (EOFError, zlib.error, ValueError):
        target.unlink()
        raise
    return member


def tar_members(archive: Path, compression: str | None, budget: Budget, folder: Path) -> Iterator[Member]:
    with open_stream(archive, compression) as stream, tarfile.open(fileobj=stream, mode="r|") as container:
        for info in container:
            if info.isdir():
                continue
            member = plan_member(info.name, None if info.isreg() else "a link or device, not a file", budget)
            source = container.extractfile(info) if member.file is not None else None
            if source is not None and member.file is not None:
                with source:
                    budget.copy(source, folder / member.file)
            yield member
        require_whole(stream)  # else damage between two members looks like the end


def described(error: Exception) -> str:
    """Return what is wrong with an archive. Raises the error again if the disk failed."""
    if isinstance(error, OSError) and error.errno not in (
        None,
        errno.EINVAL,
    ):  # EINVAL: a damaged offset points before the start
        raise error
    return f"damaged archive ({type(error).__name__})"


def plan_member(name: str, problem: str | None, budget: Budget) -> Member:
    """Decide where a member is unpacked to. Raises RecordError if there are too many."""
    budget.members += 1
    if budget.members > MEMBERS:
        raise RecordError(f"more than {MEMBERS} members")
    path = PurePosixPath(name.replace("\\", "/"))
    form = format_of(path.name, budget.given)
    if path.is_absolute() or ".." in path.parts:
        problem = "reaches outside its archive"
    elif str(path) in budget.names:
        problem = "duplicate member name"
    elif form is not None and form.is_archive:
        problem = "an archive inside an archive"
    budget.names.add(str(path))
    if problem is not None or form is None:
        return Member(name=str(path), problem=problem)
    return Member(name=str(path), file=f"{budget.members:06d}-{re.sub(r'[^A-Za-z0-9._-]', '_', path.name)[-80:]}")
