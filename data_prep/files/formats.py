"""A file's format and compression, by its name or its source's `format`, and the libraries that it needs."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import PurePath
from typing import Any, Literal, get_args

from cluster.errors import DataError

FormatName = Literal[
    "text", "html", "xml", "notebook", "pdf", "docx", "epub", "jsonl", "json", "csv", "tsv", "parquet", "arrow",
    "warc", "wikipedia",
]  # fmt: skip

PROSE = ".txt .text .md .markdown .rst .org .adoc .asciidoc .tex .log"
CODE = (
    ".py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .hxx .cu .cuh .cs .go .rs .java .kt .kts .scala .groovy .gradle .swift "
    ".m .mm .js .mjs .cjs .jsx .ts .tsx .vue .svelte .rb .php .pl .pm .lua .r .rmd .qmd .jl .hs .ml .mli .fs .ex .exs "
    ".erl .clj .lisp .el .scm .rkt .dart .zig .nim .f .f90 .f95 .asm .s .v .sv .vhd .vhdl .sh .bash .zsh .fish .ps1 "
    ".bat .sql .graphql .proto .tf .cmake .yaml .yml .toml .ini .cfg .sol .bib"
)
DOCUMENTS = {
    ".html": "article",
    ".htm": "article",
    ".xhtml": "article",
    ".xml": "xml",  # its first bytes show whether it is a wiki dump
    ".ipynb": "notebook",
    ".pdf": "pdf",
    ".docx": "docx",
    ".epub": "epub",
}
ROWS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
MARKDOWN = (".md", ".markdown", ".qmd", ".rmd")
CRAWLS = {".warc": "warc", ".wet": "warc"}
KINDS = {**dict.fromkeys(f"{PROSE} {CODE}".split(), "text"), **DOCUMENTS, **ROWS, **CRAWLS}
ARCHIVES = {".zip": "zip", ".tar": "tar"}
BY_SUFFIX = {**KINDS, **ARCHIVES}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
SHORT_NAMES = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz"}

ROW_KINDS = {"jsonl", "json", "csv", "tsv", "parquet", "arrow"}  # many documents in a file, from named columns
MANY_KINDS = {*ROW_KINDS, "warc", "wikipedia"}  # many documents in a file
CUT_KINDS = {"text", "jsonl", "parquet"}  # a large file may be read by several tasks
SEEKING_KINDS = {"parquet", "arrow"}  # need seeking, so they cannot be read from a compressed stream
TABLE_KINDS = {"csv", "tsv"}
LINE_KINDS = {"text", "jsonl", *TABLE_KINDS}  # whose line ends matter
ENCODED_KINDS = {*LINE_KINDS, "json", "notebook", "article", "page", "xml"}  # text in some encoding

MODULES = {
    "article": ("trafilatura", "selectolax"),
    "page": ("selectolax",),
    "epub": ("selectolax",),
    "pdf": ("pypdf",),
    "docx": ("docx",),
    "warc": ("warcio",),
    "wikipedia": ("mwparserfromhell",),
}


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a file is read. `article` and `page` are HTML: its article, or all of its text.

    A `refused` file counts as one rejected document; `note` is the reason. For text, `encoding` is None for UTF-8,
    `cr_lines` means that lines end with a carriage return alone, and `is_markdown` that it may begin with front matter.
    For CSV and TSV, `names` are the columns of a file without a header, and `skipped` counts the lines before its rows;
    `quoted` says whether cells may be quoted, `spaced` that spaces after a separator do not belong to the cell, and
    `escapes` which characters a backslash escapes. `html` says how a crawl's pages are read.
    """

    kind: str = "text"
    compression: str | None = None
    note: str | None = None
    encoding: str | None = None
    cr_lines: bool = False
    is_markdown: bool = False
    separator: str = ","
    quoted: bool = True
    spaced: bool = False
    escapes: str = ""
    names: tuple[str, ...] = ()
    skipped: int = 0
    html: str = "article"

    @property
    def has_rows(self) -> bool:
        return self.kind in ROW_KINDS

    @property
    def has_many(self) -> bool:
        """Whether a file holds many documents."""
        return self.kind in MANY_KINDS

    @property
    def is_plain(self) -> bool:
        """Whether the file's bytes are the documents' bytes, without compression or transcoding."""
        return self.compression is None and self.encoding is None and not self.cr_lines

    @property
    def may_be_cut(self) -> bool:
        return self.kind in CUT_KINDS and self.is_plain

    @property
    def is_archive(self) -> bool:
        return self.kind in ARCHIVES.values()


@lru_cache(maxsize=2**16)  # each name is looked up several times
def format_of(name: str, given: str | None = None) -> Format | None:
    """Return the format that a file's name implies; None if such files are not supported.

    `given` is a FormatName that overrides the name, except for archives.
    """
    for short, long in SHORT_NAMES.items():
        if name.lower().endswith(short):
            name = name[: -len(short)] + long
    suffix = PurePath(name).suffix.lower()
    compression = COMPRESSIONS.get(suffix)
    if compression is not None:
        suffix = PurePath(PurePath(name).stem).suffix.lower()
    kind = BY_SUFFIX.get(suffix)
    if given is not None and kind not in ARCHIVES.values():
        kind = "article" if given == "html" else given
    if kind is None or (compression is not None and kind in SEEKING_KINDS | {"zip"}):
        return None
    return Format(
        kind=kind,
        compression=compression,
        separator="\t" if kind == "tsv" else ",",
        is_markdown=kind == "text" and suffix in MARKDOWN,
    )


def beyond_name(form: Format, name: str) -> str:
    """Return, as JSON, how a format differs from what the file's name implies; "" if it does not."""
    told = format_of(name) or Format()
    if told == form:
        return ""
    other = asdict(told)
    return json.dumps({key: value for key, value in asdict(form).items() if value != other[key]})


def with_more(form: Format, more: str) -> Format:
    """Return a format with the differences that `beyond_name` stored."""
    values: dict[str, Any] = json.loads(more) if more else {}
    if "names" in values:
        values["names"] = tuple(values["names"])
    return replace(form, **values)


def suffix_of(name: str) -> str:
    """Return the key under which a file of unknown format is counted: its suffix, or its name if it has none."""
    return PurePath(name).suffix.lower() or PurePath(name).name


def with_html(form: Format, html: str) -> Format:
    """Return a format with the source's `html` setting applied."""
    if form.kind == "warc":
        return replace(form, html=html)
    return replace(form, kind="page") if form.kind == "article" and html == "plain" else form


def check_readable(form: Format, name: str) -> None:
    """Raise DataError if a library that the format needs is not installed."""
    pages = MODULES["page" if form.html == "plain" else "article"] if form.kind == "warc" else ()
    for module in (*MODULES.get(form.kind, ()), *pages):
        if importlib.util.find_spec(module) is None:
            raise DataError(
                f"{name}: reading this file needs the library {module}, which is not installed; run "
                "`pip install --editable '.[docs]'` in Shardline's folder, or leave such files out of data.sources"
            )


def supported() -> str:
    """Return the supported suffixes, for messages."""
    code = CODE.split()
    shown = f"{PROSE} {' '.join(DOCUMENTS)} {' '.join(ROWS)} {' '.join(CRAWLS)}"
    return (
        f"{', '.join(shown.split())}; source code ({', '.join(code[:8])} and {len(code) - 8} more); these in "
        f"{', '.join(COMPRESSIONS)}; and these in {', '.join(ARCHIVES)}; for files with other suffixes set their "
        f"format below the source: `format: text`, or one of {', '.join(get_args(FormatName)[1:])}"
    )
