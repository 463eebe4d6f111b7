"""Turn the sources into a fixed list of files, and the files into slices of work."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster.errors import DataError
from cluster.progress import Progress, thread_pool
from cluster.wording import count_of
from data_prep.config import SourceConfig
from data_prep.fetch.source_files import FoundFile, Named, expanded, files_of
from data_prep.files.bounded_io import DOCUMENT_BYTES
from data_prep.files.file_stamps import Stamp, stamp_of
from data_prep.files.folders import readable_name
from data_prep.files.formats import (
    TABLE_KINDS,
    Format,
    beyond_name,
    check_readable,
    format_of,
    with_html,
)
from data_prep.hints.text_hints import text_hints
from data_prep.read.byte_ranges import HashedFile, Told, hashed_file
from data_prep.read.column_choice import find_columns
from data_prep.read.parts import Columns, FilePart
from data_prep.read.table_header import check_header, header_hint
from data_prep.read.text_layouts import with_layout
from data_prep.rows.record_shapes import name_list
from data_prep.shards import SourceFile

log = logging.getLogger(__name__)

Slice = tuple[FilePart, ...]
SHAPES = {"text": "texts", "pair": "pairs", "messages": "conversations"}


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """A file of documents: its entry in the manifest, its location, and the columns that its documents come from."""

    info: SourceFile
    location: Path
    columns: Columns
    hashed: HashedFile
    stamp: Stamp | None = None


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Every file of every source in a fixed order; `passed_over` counts the skipped files by source and suffix."""

    files: list[CorpusFile]
    passed_over: dict[str, dict[str, int]]

    @property
    def bytes(self) -> int:
        return sum(file.info.bytes for file in self.files)

    @property
    def is_text(self) -> bool:
        return all(file.columns.shape == "text" for file in self.files)


def find_corpus(
    sources: Sequence[SourceConfig],
    downloads: Mapping[str, Sequence[Named]],
    cache: Path | None = None,
    slice_bytes: int | None = None,
) -> Corpus:
    """List, hash and inspect the files of all sources.

    `downloads` holds the fetched files of each source that has an address; archives are unpacked in `cache`. Files that
    may be cut are also hashed by ranges of `slice_bytes`.
    Raises DataError for a source with nothing to read.
    """
    found: list[FoundFile] = []
    passed_over: dict[str, Counter[str]] = {}
    for source in sources:
        named, others = files_of(source, downloads)
        counter = passed_over.setdefault(source.label, Counter())
        counter.update(others)
        for name, location in named:
            found += expanded(source, name, location, cache, counter)
    size = sum(file.location.stat().st_size for file in found if file.problem is None)
    with thread_pool() as pool, Progress("hashing", size, "bytes") as progress:
        files = list(pool.map(partial(opened_file, slice_bytes=slice_bytes, told=progress.advance), found))
    for source in sources:
        check_rows_used(
            source, [file.columns for file in files if file.info.source == source.label and file.info.bytes]
        )
    for file in files:
        if file.columns.format.note:
            log.warning("%s: cannot be read: %s", file.info.path, file.columns.format.note)
    check_any_readable(files)
    corpus = Corpus(files=files, passed_over={label: dict(sorted(c.items())) for label, c in passed_over.items()})
    if corpus.bytes == 0:
        raise DataError(
            f"data.sources: the corpus is empty: {count_of(len(files), 'file')} with 0 bytes in all; "
            "name files with documents"
        )
    return corpus


def check_rows_used(source: SourceConfig, columns: Sequence[Columns]) -> None:
    """Raise DataError if a source has settings for rows but no file with rows."""
    given = {"fields": source.fields.given, "system": source.system, "roles": source.roles, "markers": source.markers}
    said = [name for name, value in given.items() if value]
    is_text = all(one.layout is None and one.format.kind != "refused" for one in columns)
    if said and columns and is_text:
        raise DataError(
            f"data.sources: {source.label}: {' and '.join(said)} apply to rows, and no file here has rows; "
            "remove them, or give the files with rows a source of their own"
        )


def check_any_readable(files: Sequence[CorpusFile]) -> None:
    """Raise DataError if no file of a source can be read, with the first file's reason."""
    for label, of_source in itertools.groupby(files, key=lambda file: file.info.source):
        members = list(of_source)
        if all(file.columns.format.kind == "refused" for file in members):
            first = members[0]
            raise DataError(
                f"data.sources: {label}: none of its files can be read ({len(members)}); "
                f"{first.info.path}: {first.columns.format.note}"
            )


def read_as(corpus: Corpus, label: str) -> str:
    """Describe how a source's files are read: how many as texts, and from which columns as pairs or conversations."""
    kinds = Counter(
        f"{SHAPES[file.columns.shape]}" + (f" from {name_list(file.columns.names)}" if file.columns.names else "")
        for file in corpus.files
        if file.info.source == label and file.columns.format.kind != "refused"
    )
    return "; ".join(f"{count} with {kind}" for kind, count in sorted(kinds.items()))


def not_read(corpus: Corpus, label: str) -> list[str]:
    """Return the unused columns of a source's files that hold text."""
    return list(
        dict.fromkeys(name for file in corpus.files if file.info.source == label for name in file.columns.unused)
    )


def notes_of(corpus: Corpus, label: str) -> list[str]:
    """Return the remarks on how a source's files are read, for the log."""
    unused = [f"columns with text that are not used: {name_list(names)}"] if (names := not_read(corpus, label)) else []
    files = [file for file in corpus.files if file.info.source == label]
    told = [note for file in files if file.columns.format.has_rows for note in file.columns.notes]
    of_texts: dict[str, list[str]] = {}
    for file in files:
        for note in () if file.columns.format.has_rows else file.columns.notes:
            of_texts.setdefault(note, []).append(file.info.path)
    return list(dict.fromkeys([*unused, *told, *(f"{one_of(paths)} {note}" for note, paths in of_texts.items())]))


def one_of(paths: Sequence[str]) -> str:
    """Return one of some files, and how many others there are, for a message."""
    others = f" (and {count_of(len(paths) - 1, 'other')})" if len(paths) > 1 else ""
    return f"{paths[0]}{others}:"


def opened_file(found: FoundFile, slice_bytes: int | None, told: Told) -> CorpusFile:
    """Return `corpus_file`'s result. Raises DataError, with printable file names, for anything wrong with the file."""
    try:
        return corpus_file(found, slice_bytes, told)
    except DataError as error:
        raise DataError(readable_name(str(error))) from None
    except (PermissionError, FileNotFoundError) as error:
        raise DataError(f"{found.name}: cannot be read ({error.strerror}); fix that, or leave it out") from None


def corpus_file(found: FoundFile, slice_bytes: int | None = None, told: Told = lambda size: None) -> CorpusFile:
    """Return one file of the corpus, hashed, with its columns inferred from its first rows.

    Raises DataError if the file changes meanwhile.
    """
    source, location = found.source, found.location.resolve()
    if found.problem is not None:
        columns = Columns(shape="text", format=Format(kind="refused", note=found.problem))
        nothing = HashedFile(hashlib.sha256().hexdigest(), 0)
        info = SourceFile(source=source.label, path=found.name, bytes=0, sha256=nothing.sha256)
        return CorpusFile(info=info, location=location, columns=columns, hashed=nothing)
    stamp = stamp_of(location, found.name)
    columns = look_into(found, stamp.size)
    layout = columns.layout
    how = layout.changes() if layout is not None and layout.is_whole else {}
    hashed = hashed_file(location, slice_bytes if is_cut(columns, stamp.size) else None, told)
    info = SourceFile(
        source=source.label,
        path=found.name,
        bytes=stamp.size,
        sha256=hashed.sha256,
        reading=beyond_name(columns.format, found.name),
        joined=how,
    )
    stamp.check()
    return CorpusFile(info=info, location=location, columns=columns, hashed=hashed, stamp=stamp)


def look_into(found: FoundFile, size: int) -> Columns:
    """Infer how a file is read and which columns make its documents, from its name and its beginning."""
    source, location = found.source, found.location.resolve()
    named = with_html(format_of(found.location.name, source.format) or Format(), source.html)
    form = with_layout(named, location, found.name, source)
    check_readable(form, found.name)
    if size == 0:
        return Columns(shape="text")  # one empty document, whatever its format
    if form.has_rows:
        return columns_in(location, source, form)
    return Columns(shape="text", format=form, notes=text_hints(location, found.name, form))


def columns_in(location: Path, source: SourceConfig, form: Format) -> Columns:
    """Infer the columns of a file of rows. Raises DataError, which says what to write, if that fails."""
    try:
        columns = find_columns(location, source, form)
    except DataError as error:
        if form.kind not in TABLE_KINDS or form.names:
            raise
        raise DataError(f"{error}. {header_hint(location, form)}") from None
    if form.kind in TABLE_KINDS and not form.names:
        check_header(location, form, columns.names)
    return columns


def cut_slices(corpus: Corpus, slice_bytes: int) -> list[Slice]:
    """Cut the corpus into slices of about `slice_bytes`, by file sizes alone.

    Large files are cut at multiples of `slice_bytes` if their format allows it; small files of one source share a
    slice.
    """
    slices: list[Slice] = []
    group: list[FilePart] = []
    for part in itertools.chain.from_iterable(parts_of(i, f, slice_bytes) for i, f in enumerate(corpus.files)):
        size = sum(other.end - other.start for other in group)
        same_source = not group or corpus.files[group[-1].file].info.source == corpus.files[part.file].info.source
        if group and (not same_source or size + part.end - part.start > slice_bytes):
            slices.append(tuple(group))
            group = []
        group.append(part)
    return [*slices, tuple(group)]


def is_cut(columns: Columns, size: int) -> bool:
    """Return whether a file with these columns and this size is cut, so that several tasks can read it."""
    return columns.may_be_cut and (columns.format.has_rows or size > DOCUMENT_BYTES)


def parts_of(index: int, file: CorpusFile, slice_bytes: int) -> list[FilePart]:
    """Return one file as parts of at most `slice_bytes`, or as one part if it must not be cut."""
    step = slice_bytes if is_cut(file.columns, file.info.bytes) else max(file.info.bytes, 1)
    return [
        FilePart(
            file=index,
            location=str(file.location),
            start=start,
            end=min(start + step, file.info.bytes),
            columns=file.columns,
            stamp=file.stamp,
        )
        for start in range(0, max(file.info.bytes, 1), step)
    ]
