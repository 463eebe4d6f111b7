"""From the configuration's sources to a fixed list of files, and from the files to slices of work."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import DataError
from cluster.files import sha256_of
from data_prep.config import SourceConfig
from data_prep.documents import Columns, Part, find_columns
from data_prep.shards import SourceFile

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")  # one document for each file
RECORD_SUFFIXES = (".jsonl",)  # one document for each line
SUPPORTED = TEXT_SUFFIXES + RECORD_SUFFIXES

Slice = tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """A file of documents: what the manifest says of it, where it lies, and what its documents are made of."""

    info: SourceFile
    location: Path
    columns: Columns


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Every file of every source in a fixed order; `passed_over` counts by source and suffix what is not read."""

    files: list[CorpusFile]
    passed_over: dict[str, dict[str, int]]

    @property
    def bytes(self) -> int:
        return sum(file.info.bytes for file in self.files)

    @property
    def is_text(self) -> bool:
        return all(file.columns.shape == "text" for file in self.files)


def find_corpus(sources: Sequence[SourceConfig], downloads: Mapping[str, Path]) -> Corpus:
    """List, hash and look into the files of all sources; `downloads` says where the fetched URLs lie.

    Raises DataError for a source with nothing to read.
    """
    found: list[tuple[SourceConfig, str, Path]] = []
    passed_over: dict[str, Counter[str]] = {}
    for source in sources:
        named, others = files_of(source, downloads)
        found += [(source, name, location) for name, location in named]
        passed_over.setdefault(source.label, Counter()).update(others)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256_of, (location for _, _, location in found)))
    files = [corpus_file(*item, sha256) for item, sha256 in zip(found, digests, strict=True)]
    corpus = Corpus(files=files, passed_over={label: dict(sorted(c.items())) for label, c in passed_over.items()})
    if corpus.bytes == 0:
        raise DataError(
            f"data.sources: the corpus is empty: {len(files)} files hold 0 bytes; name files with documents"
        )
    return corpus


def corpus_file(source: SourceConfig, name: str, location: Path, sha256: str) -> CorpusFile:
    """Return one file as a member of the corpus, its columns found from its first rows."""
    size = location.stat().st_size
    is_text = location.suffix.lower() in TEXT_SUFFIXES or size == 0
    columns = Columns(shape="text") if is_text else find_columns(location, source.label, source.fields)
    info = SourceFile(source=source.label, path=name, bytes=size, sha256=sha256)
    return CorpusFile(info=info, location=location.resolve(), columns=columns)


def files_of(source: SourceConfig, downloads: Mapping[str, Path]) -> tuple[list[tuple[str, Path]], Counter[str]]:
    """Return a source's files under the names the manifest gives them, and the suffixes of those passed over."""
    if source.url is not None:
        named = [(source.url, downloads[source.url])]
    else:
        named = [(path.as_posix(), path) for path in paths_of(str(source.path))]
    supported = [(name, path) for name, path in named if path.suffix.lower() in SUPPORTED]
    passed_over = Counter(path.suffix.lower() or path.name for _, path in named if path.suffix.lower() not in SUPPORTED)
    if not supported:
        found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(passed_over.items())) or "no file"
        raise DataError(
            f"data.sources: {source.label}: nothing to read here ({found}); supported are {', '.join(SUPPORTED)}"
        )
    return supported, passed_over


def paths_of(pattern: str) -> list[Path]:
    """Return the files that a path, folder or glob names, sorted; hidden ones only if named themselves."""
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found: Iterable[Path] = (p for p in path.rglob("*") if not is_hidden(p.relative_to(path)))
    else:
        found = expand(path)
    files = sorted((p for p in found if p.is_file()), key=lambda p: p.as_posix())
    if not files and not path.is_dir():
        raise DataError(
            f"data.sources: {pattern}: no such file, folder or match in {Path.cwd()}; "
            "paths are relative to the folder in which the command runs"
        )
    return files


def expand(pattern: Path) -> Iterable[Path]:
    """Yield what a glob matches; `**` stands for any number of folders."""
    plain = list(itertools.takewhile(lambda part: not set(part) & set("*?["), pattern.parts))
    rest = pattern.parts[len(plain) :]
    return Path(*plain).glob(str(Path(*rest))) if rest else ()


def is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def cut_slices(corpus: Corpus, slice_bytes: int) -> list[Slice]:
    """Return the corpus as slices of about `slice_bytes`, decided from sizes alone.

    Large .jsonl files are cut at multiples of `slice_bytes`, text files never; small files of one source share a slice.
    """
    slices: list[Slice] = []
    group: list[Part] = []
    for part in itertools.chain.from_iterable(parts_of(i, f, slice_bytes) for i, f in enumerate(corpus.files)):
        size = sum(other.end - other.start for other in group)
        same_source = not group or corpus.files[group[-1].file].info.source == corpus.files[part.file].info.source
        if group and (not same_source or size + part.end - part.start > slice_bytes):
            slices.append(tuple(group))
            group = []
        group.append(part)
    return [*slices, tuple(group)]


def parts_of(index: int, file: CorpusFile, slice_bytes: int) -> list[Part]:
    """Return one file as parts of at most `slice_bytes`, or as one part if it must not be cut."""
    step = slice_bytes if file.columns.names else max(file.info.bytes, 1)
    return [
        Part(
            file=index,
            location=str(file.location),
            start=start,
            end=min(start + step, file.info.bytes),
            columns=file.columns,
        )
        for start in range(0, max(file.info.bytes, 1), step)
    ]
