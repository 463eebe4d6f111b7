"""What a file is, told by its name: its format, its compression, and what reading it takes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import PurePath

from cluster.errors import DataError

KINDS = {
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
    ".py": "text",
    ".html": "article",
    ".htm": "article",
    ".xhtml": "article",
    ".xml": "xml",
    ".pdf": "pdf",
    ".docx": "docx",
    ".epub": "epub",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
ARCHIVES = {".zip": "zip", ".tar": "tar"}
SHORT_NAMES = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz"}

ROW_KINDS = {"jsonl", "json", "csv", "tsv", "parquet", "arrow"}  # many documents in a file, made of named columns
CUT_KINDS = {"text", "jsonl", "parquet"}  # a large file may be read by several tasks
SEEKING_KINDS = {"parquet", "arrow"}  # read here and there, so not from a compressed stream

MODULES = {
    "article": ("trafilatura", "selectolax"),
    "page": ("selectolax",),
    "epub": ("selectolax",),
    "pdf": ("pypdf",),
    "docx": ("docx",),
}


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a file is read. `article` and `page` are HTML: its article, or all of its text.

    A `refused` file counts as one rejected document; `note` is the reason.
    """

    kind: str = "text"
    compression: str | None = None
    note: str | None = None

    @property
    def has_rows(self) -> bool:
        return self.kind in ROW_KINDS

    @property
    def may_be_cut(self) -> bool:
        return self.kind in CUT_KINDS and self.compression is None

    @property
    def is_archive(self) -> bool:
        return self.kind in ARCHIVES.values()


def format_of(name: str) -> Format | None:
    """Return what a file's name tells of its content; None if nothing here reads such files."""
    for short, long in SHORT_NAMES.items():
        if name.lower().endswith(short):
            name = name[: -len(short)] + long
    suffix = PurePath(name).suffix.lower()
    compression = COMPRESSIONS.get(suffix)
    if compression is not None:
        suffix = PurePath(PurePath(name).stem).suffix.lower()
    kind = {**KINDS, **ARCHIVES}.get(suffix)
    if kind is None or (compression is not None and kind in SEEKING_KINDS | {"zip"}):
        return None
    return Format(kind=kind, compression=compression)


def suffix_of(name: str) -> str:
    """Return what a file of no known format is counted under: its suffix, or the name if it has none."""
    return PurePath(name).suffix.lower() or PurePath(name).name


def with_html(form: Format, html: str) -> Format:
    """Return a format as the source's `html` wants it."""
    return replace(form, kind="page") if form.kind == "article" and html == "plain" else form


def check_readable(form: Format, name: str) -> None:
    """Raise DataError if a library that the format needs is not installed."""
    for module in MODULES.get(form.kind, ()):
        if importlib.util.find_spec(module) is None:
            raise DataError(
                f"{name}: reading this takes the library {module}, which is not installed; run "
                "`pip install --editable '.[docs]'` in Shardline's folder, or leave such files out of data.sources"
            )


def supported() -> str:
    """Return the readable suffixes, for people."""
    return f"{', '.join(KINDS)}; these in {', '.join(COMPRESSIONS)}; and these in {', '.join(ARCHIVES)}"
