"""The first lines of a CSV or TSV file: comments, a header, or the first row.

Anki's exports have no header: lines such as `#separator:Comma` and `#tags column:3` tell how the notes are written
(docs.ankiweb.net/importing/text-files.html).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cluster.errors import DataError
from data_prep.files.bounded_io import RecordError, open_stream
from data_prep.files.formats import Format
from data_prep.read.delimited import decoded_lines, distinct
from data_prep.read.table_dialect import first_cells, table_layout, unexplained_bare, unexplained_quoted

LOOK_BYTES = 2**20
LOOK_LINES = 10_000
COLUMNS_SHOWN = 12
ANKI = re.compile(
    r"#(separator|html|columns|tags|notetype|deck|if matches|(?:notetype|deck|tags|guid) column):(.*)", re.IGNORECASE
)
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "space": " ", "pipe": "|", "colon": ":"}
NUMBER = re.compile(r"[0-9]{1,4}")  # of a column
MALFORMED_SHARE = 0.1  # of rows: a table with more is no plain one
CARD = ("front", "back")  # the columns of a note that has two


class Fit(NamedTuple):
    """Lines read as a table: how, the cells of the first row, and how many lines that leaves unexplained."""

    form: Format
    first: list[str]
    unexplained: int


@dataclass(frozen=True)
class Preamble:
    """How many lines stand before a table's header or first row, and what Anki tells in them, by its keys."""

    lines: int = 0
    told: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_anki(self) -> bool:
        return bool(self.told)

    @property
    def separator(self) -> str | None:
        named = self.told.get("separator", "")
        mark = SEPARATORS.get(named.strip().lower(), named.strip() or named[:1])
        return mark if len(mark) == 1 and mark not in '"\r\n' else None

    def names(self, form: Format, width: int) -> tuple[str, ...]:
        """Return the names of an Anki file's columns: its own, or those of a card."""
        own = first_cells([self.told.get("columns", "").strip(" ") + "\n"], form)
        if any(name.strip() for name in own) and (len(own) > 1 or width == 1):
            return tuple(distinct(own))
        given = {
            int(number): key.split()[0]
            for key, number in self.told.items()
            if key.endswith(" column") and NUMBER.fullmatch(number.strip())
        }
        others = [number for number in range(1, width + 1) if number not in given]
        cards = CARD if len(others) == len(CARD) else [f"field{number}" for number in others]
        named = {**given, **dict(zip(others, cards, strict=True))}
        return tuple(named[number] for number in range(1, width + 1))


def preamble_of(lines: Sequence[str], separator: str | None, width: int = 0) -> Preamble:
    """Return what stands before a table's header or first row: lines with a `#` that are no row of the table.

    A `#` may also begin a header, or a row where `columns` gives the table's width. Lines are passed over only where a
    plain table of several columns follows, and none of them would do as its first line.
    """
    begun = list(itertools.takewhile(is_comment_or_blank, lines))
    anki = anki_preamble(begun)
    if anki is not None:
        return anki
    rest = [line for line in lines[len(begun) :] if line.strip()]
    marked = [number for number, line in enumerate(begun) if line.strip()]
    if not marked or not rest:
        return Preamble()
    after = fit_of(rest, separator, width)
    if after.unexplained > MALFORMED_SHARE * len(rest) or len(after.first) < 2 or (width and len(after.first) != width):
        return Preamble()
    headers = [number for number in marked if ANKI.fullmatch(begun[number].strip()) is None]
    alike = (n for n in headers if len(first_cells([begun[n]], after.form)) == len(after.first))
    for number in sorted({*headers[:1], *headers[-1:], *itertools.islice(alike, 1)}):
        kept = fit_of([begun[number], *rest], separator, width)
        if len(kept.first) > 1 and kept.unexplained <= after.unexplained:
            return Preamble(number)
    if not width and is_data([cell for cell in after.first if not is_number(cell)]):
        return Preamble()  # a row, so the header is before it
    return Preamble(len(begun))


def anki_preamble(begun: Sequence[str]) -> Preamble | None:
    """Return what the lines before the first note tell, None if they are not of Anki: one tells the separator, or
    whether the notes have markup. Between them Anki passes over comments and blank lines.
    """
    found = [ANKI.fullmatch(line.rstrip("\r\n")) for line in begun if line.strip()]
    if not found or found[0] is None:
        return None
    preamble = Preamble(len(begun), {match[1].lower(): match[2] for match in found if match})
    has_html = preamble.told.get("html", "").strip().lower() in ("true", "false")
    return preamble if has_html or preamble.separator is not None else None


def is_comment_or_blank(line: str) -> bool:
    """Return whether a line may stand before a table."""
    return line.startswith("#") or not line.strip()


def fit_of(lines: Sequence[str], separator: str | None, width: int) -> Fit:
    """Return how well lines are a table: by the separator that is given, or the best for them."""
    lines = [line for line in lines if line.strip()]
    form = Format(separator=table_layout(lines, separator, width)[0])
    unexplained = min(unexplained_bare(lines, form.separator), unexplained_quoted(lines, form))
    return Fit(form, first_cells(lines, form), unexplained)


def looked_at_lines(location: Path, form: Format) -> list[str]:
    """Return the whole lines among a table's first LOOK_BYTES."""
    lines: list[str] = []
    size = 0
    try:
        with open_stream(location, form.compression, form.encoding, cr_lines=form.cr_lines) as stream:
            for line in decoded_lines(stream, form.skipped):
                if isinstance(line, RecordError):
                    continue
                lines.append(line)
                size += len(line)
                if size > LOOK_BYTES or len(lines) == LOOK_LINES:
                    break
    except RecordError:
        return lines  # what stands before the damage, which reading counts
    return lines


def header_hint(location: Path, form: Format) -> str:
    """Return what to add to the message about columns that are not understood: the first line may be a row."""
    first = first_cells(looked_at_lines(location, form), form)
    named = ["prompt", "completion"] if len(first) == 2 else [f"column{n}" for n, _ in enumerate(first, 1)]
    wanted = ", ".join(named if len(named) <= COLUMNS_SHOWN else [*named[:2], "...", named[-1]])
    again = [name for name, count in Counter(first).items() if count > 1]
    if again and not is_data(list(dict.fromkeys(first))):
        return (
            f"Its first line has {excerpt(again) or 'an empty cell'} more than once: if it is a header, give each "
            f"column a name of its own; if it is a row, name the columns: `columns: [{wanted}]`"
        )
    if is_data(first):
        return f"Its first line is no header but a row ({excerpt(first)}); name its columns: `columns: [{wanted}]`"
    return f"If its first line is a row and no header, name the columns: `columns: [{wanted}]`"


def check_header(location: Path, form: Format, columns: Sequence[str]) -> None:
    """Raise DataError if a table's first line is a row and has none of its columns: none of its rows could be read."""
    first = first_cells(looked_at_lines(location, form), form)
    if first and is_data(first) and not set(columns) & set(first):
        raise DataError(f"{location}: no row has the columns of the first line. {header_hint(location, form)}")


def is_data(cells: Sequence[str]) -> bool:
    """Return whether a first line is plainly a row: names are short, distinct, and neither numbers nor sentences."""
    if len(set(cells)) < len(cells):
        return True
    return any(
        len(cell) > 60 or len(cell.split()) > 5 or cell.strip().endswith((".", "?", "!")) or is_number(cell)
        for cell in cells
    )


def is_number(cell: str) -> bool:
    """Return whether a cell is a number, with a sign or one point or comma."""
    return cell.strip().lstrip("+-").replace(".", "", 1).replace(",", "", 1).isdigit()


def excerpt(cells: Sequence[str]) -> str:
    """Return the beginning of cells on one line, for a message."""
    shown = [" ".join(cell[:200].split()) for cell in cells]
    return " | ".join(cell if len(cell) <= 40 else f"{cell[:40]}..." for cell in shown)[:200]
