"""From the bytes of a file to its records: rows, pages and texts, as they are in the file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.files.bounded_io import DOCUMENT_BYTES, END, RecordError, open_stream, read_lines, read_page
from data_prep.files.formats import Format
from data_prep.read.delimited import read_csv
from data_prep.read.long_texts import read_texts
from data_prep.read.pages.extraction import extract_text, limit_of
from data_prep.read.pages.notebooks import notebook_text
from data_prep.read.tables import read_arrow, read_parquet, split_json

Raw = bytes | str | Mapping[str, Any] | RecordError  # bytes: JSON of a row, or a text; str: an extracted text

XML_DECLARATION = re.compile(rb"\A\s*<\?xml[^>]*\?>")


def raw_records(path: Path, form: Format, start: int, end: int, wanted: tuple[str, ...] | None = None) -> Iterator[Raw]:
    """Yield the records of a range of a file; of tables, only the `wanted` columns.

    A RecordError stands for a record that cannot be read, or for everything after the damage in a damaged file.
    """
    try:
        if form.kind == "refused":
            yield RecordError(str(form.note))
        elif form.kind == "parquet":
            yield from read_parquet(path, start, end, wanted)
        elif form.kind == "arrow":
            yield from read_arrow(path, wanted)
        else:
            yield from streamed_records(path, form, start, end)
    except RecordError as objection:
        yield objection


def streamed_records(path: Path, form: Format, start: int, end: int) -> Iterator[Raw]:
    """Yield the records of a file that is read as a stream: all of it, or a range of its bytes."""
    if not form.is_plain:
        start, end = 0, END
    with open_stream(path, form.compression, form.encoding, cr_lines=form.cr_lines) as stream:
        if form.kind == "text":
            yield from read_texts(stream, start, end, is_long=form.is_plain and path.stat().st_size > DOCUMENT_BYTES)
        elif form.kind == "jsonl":
            yield from read_lines(stream, start, end)
        elif form.kind == "json":
            yield from split_json(stream)
        elif form.kind in ("csv", "tsv"):
            yield from read_csv(stream, form)
        else:
            yield from extracted_records(stream, form)


def extracted_records(stream: BinaryIO, form: Format) -> Iterator[Raw]:
    """Yield the texts of a crawl or a wiki, or the one text of a page, notebook or book."""
    if form.kind == "warc":
        from data_prep.read.pages.web_crawls import read_crawl

        yield from read_crawl(stream, form.html)
        return
    if form.kind == "wikipedia":
        from data_prep.read.pages.wiki_dumps import read_dump

        yield from read_dump(stream)
        return
    data = read_page(stream, limit_of(form.kind))
    if form.kind == "xml" and form.encoding is not None:
        data = XML_DECLARATION.sub(b"", data, count=1)  # it names the encoding before the data was converted to UTF-8
    yield notebook_text(data) if form.kind == "notebook" else extract_text(form.kind, data)
