"""How a CSV or TSV file is written, detected from its first lines: separator, quotes, backslashes.

Each way to read the lines leaves some of them unexplained: rows of another width, broken quotes, lines inside of a cell
that look like rows. The way that leaves the fewest is taken.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data_prep.files.bounded_io import DOCUMENT_BYTES
from data_prep.files.formats import Format
from data_prep.read.delimited import ESCAPED, LineFeed, hidden, quoted_rows, split_rows

SEPARATORS = (",", ";", "\t", "|")
NO_SEPARATOR = "\x1f"  # of a single column of bare text, whatever punctuation it has
ENCLOSED = re.compile(r'"(?:""|[^"]*(?:""[^"]*)+)?"')  # a cell with doubled quotes inside, or nothing
SPACED_SHARE = 0.9  # of rows: from here on a space after the separator is the file's way of writing
ESCAPES_GAIN = 10  # so many times fewer lines are unexplained if backslashes escape


def table_layout(lines: Sequence[str], separator: str | None, width: int = 0) -> tuple[str, bool]:
    """Return what separates the cells of a table that begins with these lines, and whether quotes enclose cells.

    `width` is the number of its columns, if that is known. Each way to read the lines leaves some unexplained; the one
    that leaves the fewest is right. Of separators, those come first that are in the first line: else the file has one
    column.
    """
    csv.field_size_limit(DOCUMENT_BYTES)
    lines = [line for line in lines if line.strip()]
    if not lines:
        return separator or ",", True
    if separator is None:
        present = [mark for mark in SEPARATORS if mark in lines[0] and width != 1] or [",", NO_SEPARATOR]
        separator = min(present, key=lambda mark: unexplained(lines, mark, width))
    return separator, is_quoted(lines, separator)


def unexplained(lines: Sequence[str], separator: str, width: int) -> tuple[bool, int, int, int]:
    """Return what speaks against a separator, the gravest first."""
    first = next(split_rows(iter(lines), Format(separator=separator)), [])
    cells = len(first) if isinstance(first, list) else 0
    bare, quoted = unexplained_bare(lines, separator), unexplained_quoted(lines, Format(separator=separator))
    return bool(width) and cells != width, min(bare, quoted), quoted, -cells


def unexplained_bare(lines: Sequence[str], separator: str) -> int:
    """Count the lines that have not the first one's number of separators, or a cell that a program has enclosed."""
    expected = lines[0].count(separator) if lines else 0
    return sum(
        line.count(separator) != expected
        or ('""' in line and any(map(ENCLOSED.fullmatch, line.rstrip("\r\n").split(separator))))
        for line in lines
    )


def unexplained_quoted(lines: Sequence[str], form: Format) -> int:
    """Count the lines that rules of quoting do not explain: those of rows of another width than the first, where the
    rules are broken, and lines inside of a cell that look like rows themselves.
    """
    feed = LineFeed(iter(lines))
    width, count = 0, 0
    for row in quoted_rows(feed, form):
        if isinstance(row, csv.Error):
            feed.put_back()
            count += "new-line" not in str(row)  # a carriage return in a cell: its line is taken as it stands
            continue
        width = width or len(row)
        if len(row) != width:
            count += len(feed.taken)
        elif len(feed.taken) > 1:
            count += max(sum(line.count(form.separator) == width - 1 for line in feed.taken) - 1, 0)
    return count


def is_quoted(lines: Sequence[str], separator: str) -> bool:
    """Return whether quotes enclose cells.

    In CSV they do, unless none that is opened in a line is closed in it and every line has the header's number of
    separators. In TSV they rarely do: there it takes signs of a program that encloses.
    """
    if not any('"' in line for line in lines):
        return separator != "\t"
    bare, quoted = unexplained_bare(lines, separator), unexplained_quoted(lines, Format(separator=separator))
    cells = [cell for line in lines for cell in line.rstrip("\r\n").split(separator)]
    enclosed = [cell for cell in cells if len(cell) > 1 and cell[0] == cell[-1] == '"']
    if separator != "\t":
        return bool(bare or enclosed or not quoted)
    if bare or quoted:
        return quoted <= bare
    open_cells = [cell for cell in cells if not cell.startswith('"')]
    as_excel = all("," in cell for cell in enclosed) and not any("," in cell for cell in open_cells)
    return bool(enclosed) and (as_excel or all(name in enclosed for name in lines[0].rstrip("\r\n").split("\t")))


def with_quoting(form: Format, lines: Sequence[str]) -> Format:
    """Return a table's format with whether spaces stand before quotes, and what a backslash escapes.

    Either is taken only where it explains lines that nothing else does, or is in nearly every row: else a cell keeps
    its spaces and backslashes.
    """
    lines = [line for line in lines if line.strip()]
    text = "".join(lines)
    if not form.quoted or '"' not in text:
        return form
    is_doubled = "\\\\" in text and "\\" not in ESCAPED.sub("", text)
    other = replace(form, escapes='"\\' if is_doubled else '"')
    ways = [form, other] if '\\"' in text else [form]
    if form.separator != "\t" and re.search(f'{re.escape(form.separator)} +"', text):
        ways += [spaced for way in ways if is_spaced(lines, spaced := replace(way, spaced=True))]
    if len(ways) == 1:
        return form

    def against(way: Format) -> tuple[int, bool, bool]:
        count = unexplained_quoted(lines, way)
        return count * (ESCAPES_GAIN if way.escapes else 1), bool(way.escapes), not way.spaced

    return min(ways, key=against)


def is_spaced(lines: Sequence[str], form: Format) -> bool:
    """Return whether in nearly every row below the header a space follows the first cell's separator."""
    feed = LineFeed(iter(lines))
    mark = re.escape(form.separator)
    begins = re.compile(f' *(?:"(?:[^"]|"")*"|[^"{mark}][^{mark}]*)?{mark} ')
    seen = spaced = 0
    for number, row in enumerate(quoted_rows(feed, form)):
        if isinstance(row, csv.Error):
            feed.put_back()
        elif number and len(row) > 1 and row[1]:
            seen += 1
            spaced += begins.match(hidden("".join(feed.taken), form.escapes)) is not None
    return seen > 0 and spaced >= SPACED_SHARE * seen


def first_cells(lines: Sequence[str], form: Format) -> list[str]:
    """Return the cells of a table's first row."""
    rows: Any = split_rows(iter(lines), form)
    row = next((row for row in rows if isinstance(row, list)), [])
    return list(row)
