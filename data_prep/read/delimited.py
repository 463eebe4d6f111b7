"""Rows out of CSV and TSV: by the rules of the format where a file keeps them, line by line where it does not."""

from __future__ import annotations

import codecs
import csv
import itertools
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from data_prep.files.bounded_io import DOCUMENT_BYTES, TOO_LONG, RecordError, read_lines
from data_prep.files.formats import Format

EXCEL_HINT = re.compile(rb"sep=(.)\s*")  # Excel's own first line, which is no row
CELL_LINES = 100_000  # of one quoted cell: one that is never closed takes no more
ESCAPED = re.compile(r'\\(["\\])')
STANDS_FOR = {'"': "\ud800", "\\": "\ud801"}  # what no text decodes to
WRONG_WIDTH = "another number of columns than the header"

Line = str | RecordError


class LineFeed:
    """Lines for the csv module: what it took for its row is known, and can be put back."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self.lines = self.undamaged(lines)  # one for all readings
        self.back: deque[Line] = deque()
        self.taken: list[str] = []
        self.objection: RecordError | None = None
        self.damage: RecordError | None = None

    def fed(self) -> Iterator[str]:
        """Yield lines until those of one row are too many."""
        taken = self.taken
        for line in itertools.chain(drained(self.back), self.lines):
            if isinstance(line, RecordError):
                self.objection, line = line, " \n"
            taken.append(line)
            yield line
            if len(taken) >= CELL_LINES:
                return

    def undamaged(self, lines: Iterator[Line]) -> Iterator[Line]:
        """Yield the lines before damage, which is kept: lines that were taken before it may come back."""
        try:
            yield from lines
        except RecordError as damage:
            self.damage = damage

    def put_back(self) -> str:
        """Return the first line that was taken and put the others back; what was fed before continues from there."""
        self.back.extendleft(reversed(self.taken[1:]))
        return self.taken[0]


def drained(lines: deque[Line]) -> Iterator[Line]:
    """Yield and remove the lines that were put back."""
    while lines:
        yield lines.popleft()


def quoted_rows(feed: LineFeed, form: Format) -> Iterator[list[str] | csv.Error]:
    """Yield the cells of each row by the rules of quoting, or how its lines break them: they can be put back then."""

    def opened() -> Iterator[list[str]]:
        lines = (hidden(line, form.escapes) for line in feed.fed()) if form.escapes else feed.fed()
        return csv.reader(lines, delimiter=form.separator, skipinitialspace=form.spaced, strict=True)

    rows = opened()
    while True:
        feed.taken.clear()
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield error
            rows = opened()
        else:
            yield [shown(cell) for cell in row] if form.escapes else row


def hidden(line: str, escapes: str) -> str:
    """Return a line in which other characters stand for those that a backslash escapes; other backslashes stay."""
    if "\\" not in line:
        return line
    return ESCAPED.sub(lambda found: STANDS_FOR[found[1]] if found[1] in escapes else found[0], line)


def shown(cell: str) -> str:
    """Return a cell with the characters that `hidden` took away."""
    for character, other in STANDS_FOR.items():
        cell = cell.replace(other, character)
    return cell


def read_csv(stream: BinaryIO, form: Format) -> Iterator[dict[str, str] | RecordError]:
    """Yield the rows of a CSV or TSV file."""
    csv.field_size_limit(DOCUMENT_BYTES)
    rows = split_rows(decoded_lines(stream, form.skipped), form)
    names: Sequence[str] = form.names
    for row in rows:
        if isinstance(row, RecordError):
            yield row
        elif not names:
            names = distinct(row)
        else:
            yield named_row(names, row)


def decoded_lines(stream: BinaryIO, skipped: int) -> Iterator[Line]:
    """Yield lines as text, wrong bytes as lone surrogates; without a byte order mark, Excel's hint, and the `skipped`
    lines after these.
    """
    lines = read_lines(stream)
    first = next(lines, None)
    if isinstance(first, bytes):
        first = first.removeprefix(codecs.BOM_UTF8)
    if first is not None and not (isinstance(first, bytes) and EXCEL_HINT.fullmatch(first)):
        lines = itertools.chain([first], lines)
    for line in itertools.islice(lines, skipped, None):
        yield line if isinstance(line, RecordError) else line.decode("utf-8", "surrogateescape") + "\n"


def split_rows(lines: Iterator[Line], form: Format) -> Iterator[list[str] | RecordError]:
    """Yield each row's cells. Where the file is damaged, raises RecordError."""
    feed = LineFeed(lines)
    width = 0
    for row in quoted_rows(feed, form) if form.quoted else bare_rows(feed, form.separator):
        found: list[str] | RecordError | csv.Error = row
        if isinstance(row, csv.Error):
            found = broken_row(feed, form, width, row)
        elif not width:
            width = len(row)
        if feed.objection is not None:
            found, feed.objection = feed.objection, None
        yield found  # type: ignore[misc]  # an error of the module has been replaced
    if feed.damage is not None:
        raise feed.damage


def broken_row(feed: LineFeed, form: Format, width: int, error: csv.Error) -> list[str] | RecordError:
    """Return the first line that was taken as it stands, if that is a row; the lines after it are read anew.

    A quote that was meant as a quote is followed by rows, a cell that ends early by the rest of its text: that goes
    with the first line, and no part of it is taken for a row.
    """

    def is_like_a_row(line: str) -> bool:
        quotes = line.count('"')
        return line.count(form.separator) == width - 1 or (quotes > 0 and quotes % 2 == 0)

    follow = [is_like_a_row(line) for line in feed.taken[1:]]
    first = feed.put_back() if any(follow) else feed.taken[0]
    cells = [cell.lstrip(" ") if form.spaced else cell for cell in first.rstrip("\n").split(form.separator)]
    if len(cells) == width and (first.count('"') % 2 == 0 or (follow and all(follow))):
        return cells
    return RecordError(TOO_LONG if "limit" in str(error) else f"bad CSV ({error})")


def bare_rows(feed: LineFeed, separator: str) -> Iterator[list[str]]:
    """Yield the cells of each line as they stand."""
    for line in feed.fed():
        yield line.rstrip("\n").split(separator) if line != "\n" else []
        feed.taken.clear()


def distinct(names: Sequence[str]) -> list[str]:
    """Return a header's names, those that come again with a number: none hides another."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        result.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return result


def named_row(names: Sequence[str], values: Sequence[str]) -> dict[str, str] | RecordError:
    """Return a row's values by column, or why it is no row."""
    if not values:
        return RecordError("blank line")
    if len(values) != len(names):
        return RecordError(WRONG_WIDTH)
    if any("\udc80" <= character <= "\udcff" for value in values if not value.isascii() for character in value):
        return RecordError("invalid UTF-8")
    return dict(zip(names, values, strict=True))
