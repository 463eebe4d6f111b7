"""List the files that a source names, archive members included, before any of them is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.errors import DataError
from data_prep.config import SourceConfig
from data_prep.fetch.hub_layout import DESCRIPTION, OTHER_SPLIT
from data_prep.fetch.local_files import paths_of
from data_prep.files.archives import SEPARATOR, unpack
from data_prep.files.folders import is_hidden, readable_name
from data_prep.files.formats import TABLE_KINDS, Format, format_of, suffix_of, supported
from data_prep.files.other_formats import advice_on

Named = tuple[str, Path]  # the name of a file in the manifest, and where the file lies


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file, or a member of an archive, before it is inspected; `problem` says why it cannot be read."""

    source: SourceConfig
    name: str
    location: Path
    problem: str | None = None


def expanded(
    source: SourceConfig, name: str, location: Path, cache: Path | None, passed_over: Counter[str]
) -> Iterator[FoundFile]:
    """Yield a file, or the members of an archive; members of unknown formats are counted as in a folder."""
    form = format_of(location.name, source.format)
    if form is None or not form.is_archive:
        yield FoundFile(source=source, name=name, location=location)
        return
    if cache is None:
        raise DataError(f"{location}: is an archive, and there is no folder to unpack it in; unpack it yourself")
    members, folder = unpack(location, form, cache, source.format)
    for member in members:
        inside = f"{name}{SEPARATOR}{readable_name(member.name)}" if member.name else name
        if member.problem is not None:
            yield FoundFile(source=source, name=inside, location=location, problem=member.problem)
        elif any(map(is_hidden, PurePosixPath(member.name).parts)):
            continue
        elif member.file is not None:
            yield FoundFile(source=source, name=inside, location=folder / member.file)
        else:
            passed_over[suffix_of(readable_name(member.name))] += 1


def files_of(source: SourceConfig, downloads: Mapping[str, Sequence[Named]]) -> tuple[list[Named], Counter[str]]:
    """Return a source's readable files by their names in the manifest, and counts of the skipped ones."""
    passed_over: Counter[str] = Counter()
    if source.address is not None:
        named = list(downloads[source.address])
    else:
        paths = paths_of(source, passed_over)
        named = [(readable_name(path.as_posix()), (source.relative_to or Path()) / path) for path in paths]
    readable = [(name, path) for name, path in named if format_in(path, source) is not None]
    passed_over.update(suffix_of(readable_name(path.name)) for _, path in named if format_in(path, source) is None)
    if not readable:
        found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(passed_over.items())) or "no file"
        raise DataError(
            f"data.sources: {source.label}: nothing to read here ({found}){advice_on(passed_over)}; "
            f"supported are {supported()}"
        )
    check_used(source, [path for _, path in readable])
    return readable, passed_over


def format_in(path: Path, source: SourceConfig) -> Format | None:
    """Return a file's format by its source or name; None if it is not readable or was not fetched."""
    return None if str(path) in (OTHER_SPLIT, DESCRIPTION) else format_of(path.name, source.format)


def check_used(source: SourceConfig, paths: Sequence[Path]) -> None:
    """Raise DataError if a source has settings for tables but no tables."""
    forms = [form for path in paths if (form := format_in(path, source)) is not None]
    if any(form.kind in TABLE_KINDS or form.is_archive for form in forms):
        return
    for key in ("columns", "separator"):
        if getattr(source, key) is not None:
            raise DataError(f"data.sources: {source.label}: `{key}` is for CSV and TSV, and no file here is either")
