"""How a text file is laid out, detected from its beginning: encoding, line ends, and what separates its cells.

Nothing is guessed in silence: without a byte order mark and an `encoding` a text must be UTF-8; if it is not, the
message says so, and what to write.
"""

from __future__ import annotations

import codecs
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cluster.errors import DataError
from cluster.wording import count_of, is_or_are
from data_prep.config import SourceConfig
from data_prep.files.bounded_io import RecordError, open_stream, require_whole, valid_beginning
from data_prep.files.folders import readable_name
from data_prep.files.formats import ENCODED_KINDS, LINE_KINDS, TABLE_KINDS, Format
from data_prep.read.table_dialect import first_cells, table_layout, with_quoting
from data_prep.read.table_header import LOOK_BYTES, excerpt, looked_at_lines, preamble_of

log = logging.getLogger(__name__)

HEAD_BYTES = 16 * 2**10  # of a web page
CHARSET = re.compile(
    rb"<(?:meta|\?xml)\b[^>]{0,200}?(?:charset|encoding)\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]+)", re.IGNORECASE
)
C1 = re.compile(rb"[\x80-\x9f]")
PAGE_KINDS = ("article", "page")
WIKI_BYTES = 4096
LINE_BYTES = 400  # a line has about so many, where a file has few ends of lines
WRONG_SHARE = 0.2  # of lines with bytes that are not UTF-8: from here on the whole file is in another encoding
ELSEWHERE_SHARE = 0.3  # of bytes beyond ASCII: text in Latin letters has fewer
SURE_CHARACTERS = 8  # that are valid UTF-8 beyond ASCII are no accident
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
UNMARKED = (  # of how many bytes a character is, and which of them are NUL in western text
    (4, (0, 1, 2), "utf-32-be"),
    (4, (1, 2, 3), "utf-32-le"),
    (2, (0,), "utf-16-be"),
    (2, (1,), "utf-16-le"),
)
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
LFS_BYTES = 1024  # a pointer has fewer
LFS_NOTE = "a Git LFS pointer, not the file: run `git lfs pull`"
PACKED = (
    (b"\x1f\x8b\x08", "gzip", ".gz"),
    (b"BZh91AY&SY", "bzip2", ".bz2"),
    (b"\xfd7zXZ\0", "xz", ".xz"),
    (b"\x28\xb5\x2f\xfd", "zstd", ".zst"),
)
BINARY = "not text: it has NUL bytes"


class Seen(NamedTuple):
    """How many bytes are not UTF-8, how many characters beyond ASCII are, and the share of lines with wrong bytes."""

    wrong: int = 0
    right: int = 0
    share: float = 0.0


def with_layout(form: Format, location: Path, name: str, source: SourceConfig) -> Format:
    """Return a file's format with what its beginning tells. Raises DataError if `columns` or `encoding` are wrong."""
    if is_pointer(location):
        return replace(form, kind="refused", note=LFS_NOTE)
    if form.kind not in ENCODED_KINDS:
        return form
    try:
        data, is_whole = beginning(location, form)
    except RecordError:
        return form  # a bomb; reading meets it too, and counts it
    if form.compression is None and (note := packed_note(data, location.name)):
        return replace(form, kind="refused", note=note)
    if form.kind == "xml" and b"<mediawiki" in data[:WIKI_BYTES]:
        return replace(form, kind="wikipedia")
    form = with_encoding(form, data, name, source.encoding, is_whole=is_whole)
    if form.kind not in LINE_KINDS:
        return form
    text = data
    if form.encoding is not None:
        with open_stream(location, form.compression, form.encoding) as stream:
            text = stream.read(LOOK_BYTES)
    if b"\r" in text and b"\n" not in text:
        form = replace(form, cr_lines=True)
    return with_table(form, location, name, source) if form.kind in TABLE_KINDS else form


def packed_note(data: bytes, name: str) -> str | None:
    """Return what to do about a file that is packed, though its name does not say so."""
    for magic, what, suffix in PACKED:
        if data.startswith(magic):
            return f"is {what} data: name it {readable_name(name)}{suffix}"
    return None


def beginning(location: Path, form: Format) -> tuple[bytes, bool]:
    """Return a file's first bytes as they are, and whether that is all; of a damaged file, those before the damage."""
    if form.compression is None:
        with location.open("rb") as file:
            data = file.read(LOOK_BYTES)
        return data, len(data) < LOOK_BYTES
    with open_stream(location, form.compression) as stream:
        data = stream.read(LOOK_BYTES)
        try:
            require_whole(stream)
        except RecordError:
            is_marked = any(data.startswith(mark) for mark, _ in BYTE_ORDER_MARKS)
            return data if is_marked else valid_beginning(data), False  # what follows may have been unpacked wrong
    return data, len(data) < LOOK_BYTES


def with_encoding(form: Format, data: bytes, name: str, given: str | None, *, is_whole: bool) -> Format:
    """Return a format with the encoding that a mark, the source or a web page tells; a file in another is refused."""
    for mark, told in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return replace(form, encoding=told)
    seen = counted(data, is_whole=is_whole)
    if given not in (None, "utf-8") and not data.startswith(codecs.BOM_UTF8):
        check_given(str(given), data, seen, name)
        return replace(form, encoding=given)
    if form.kind == "xml":
        return form  # its parser knows how it says what it is in
    declared = declared_encoding(data) if form.kind in PAGE_KINDS and seen.wrong else None
    if declared is not None:
        return form if declared == "utf-8" else replace(form, encoding=declared)
    note = nul_note(data, form.kind) or wrong_note(form, data, seen, name, is_whole=is_whole)
    return replace(form, kind="refused", note=note) if note else form


def check_given(given: str, data: bytes, seen: Seen, name: str) -> None:
    """Raise DataError if a file is plainly UTF-8 and its source says another encoding: it would be read wrong."""
    is_wide = given.startswith(("utf-16", "utf-32"))
    is_utf8 = not seen.wrong and (seen.right >= SURE_CHARACTERS or (is_wide and data.isascii()))
    if data and is_utf8 and b"\0" not in data:
        raise DataError(f"{name}: this file is UTF-8, not {given}; give it a source of its own without `encoding`")
    if given == "iso8859-1" and C1.search(data) is not None:
        raise DataError(f"{name}: has bytes that are characters in cp1252, not in latin-1; write `encoding: cp1252`")


def wrong_note(form: Format, data: bytes, seen: Seen, name: str, *, is_whole: bool) -> str | None:
    """Return why a file is refused that is in another encoding than UTF-8; stray wrong bytes are warned of."""
    is_one = form.kind in ("text", "notebook") and is_whole
    if seen.wrong > seen.right and (is_one or seen.share >= WRONG_SHARE):
        return f"not UTF-8: write its `encoding`, such as {likely(data)}"
    if seen.wrong and form.kind not in PAGE_KINDS:
        log.warning(
            "%s: %s in its first %d bytes %s not UTF-8, and records with such are rejected; "
            "if all of it is in another encoding, write it below the source, for example `encoding: %s`",
            name,
            count_of(seen.wrong, "place"),
            len(data),
            is_or_are(seen.wrong),
            likely(data),
        )
    return None


def declared_encoding(data: bytes) -> str | None:
    """Return the encoding that a web page says it is in, if Python has it. What calls itself Latin-1 is Windows-1252,
    as the HTML standard has it.
    """
    found = CHARSET.search(data[:HEAD_BYTES])
    try:
        name = codecs.lookup(found[1].decode()).name if found is not None else None
    except LookupError:
        return None
    return "cp1252" if name in ("iso8859-1", "ascii") else name


def counted(data: bytes, *, is_whole: bool) -> Seen:
    """Return how well data is UTF-8; what is longer than a line counts as several, for JSON may be on one line."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text = decoder.decode(data, is_whole)
    if text.isascii():
        return Seen()
    beyond = len(text) - len(text.encode("ascii", "ignore"))
    wrong = len(text) - len(text.encode("utf-8", "ignore").decode())
    if not wrong:
        return Seen(right=beyond)
    lines = [line[at : at + LINE_BYTES] for line in text.splitlines() for at in range(0, len(line), LINE_BYTES)]
    bad = sum(not line.isascii() and any("\udc80" <= character <= "\udcff" for character in line) for line in lines)
    return Seen(wrong=wrong, right=beyond - wrong, share=bad / len(lines))


def nul_note(data: bytes, kind: str) -> str | None:
    """Return why data with many NUL bytes is no text, or what to write: UTF-16 has one beside each ASCII character.

    Rows that a dead machine's disk filled up with NUL bytes are still rows.
    """
    if data.count(0) * 100 < len(data) or not data:
        return None
    for unit, zero, name in UNMARKED:
        columns = [data[at::unit] for at in range(unit)]
        is_zero = [column.count(0) * 2 > len(column) for column in columns]
        if is_zero == [at in zero for at in range(unit)]:
            return f"NUL bytes, as in text without a byte order mark: write `encoding: {name}`"
    return BINARY if kind == "text" else None


def likely(data: bytes) -> str:
    """Return an encoding that is worth a try: that of western Europe which the bytes allow, or some of elsewhere."""
    if len(data.translate(None, bytes(range(128)))) > ELSEWHERE_SHARE * len(data):
        return "gb18030, shift_jis or cp1251"
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "cp1252"


def with_table(form: Format, location: Path, name: str, source: SourceConfig) -> Format:
    """Return a table's format with what separates its cells, whether they are quoted, and its columns' names."""
    lines = looked_at_lines(location, form)
    given = source.separator or ("\t" if form.kind == "tsv" else None)
    preamble = preamble_of(lines, given, len(source.columns or ()))
    if preamble.lines:
        told = excerpt(lines[: preamble.lines])
        log.info("%s: %s before its rows, not read as rows: %s", name, count_of(preamble.lines, "line"), told)
    form, lines = replace(form, skipped=preamble.lines), lines[preamble.lines :]
    given = source.separator or preamble.separator or given
    separator, quoted = table_layout(lines, given, len(source.columns or ()))
    form = with_quoting(replace(form, separator=separator, quoted=quoted), lines)
    if source.columns is None and preamble.is_anki:
        return replace(form, names=preamble.names(form, len(first_cells(lines, form))))
    if source.columns is None:
        if len(lines) == 1:
            log.warning("%s: it has one line, which is taken for its header, so there is no row", name)
        return form
    first = first_cells(lines, form)
    if len(first) != len(source.columns):
        raise DataError(
            f"{name}: its first row has {len(first)} cells, but `columns` of the source names {len(source.columns)}; "
            f"the row is {excerpt(first)}; name every column, or write what separates them: `separator: ...`"
        )
    if [cell.strip().lower() for cell in first] == [column.lower() for column in source.columns]:
        raise DataError(f"{name}: its first line is a header of these names; leave `columns` out of the source")
    return replace(form, names=tuple(source.columns))


def is_pointer(location: Path) -> bool:
    """Return whether Git LFS left a pointer in the place of a file, whatever the file is named."""
    if location.stat().st_size > LFS_BYTES:
        return False
    with location.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER
