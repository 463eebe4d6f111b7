"""The first lines of a CSV or TSV file: are they a header, or is the first a row?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import DataError
from data_prep.files.bounded_io import RecordError, open_stream
from data_prep.files.formats import Format
from data_prep.read.delimited import decoded_lines
from data_prep.read.table_dialect import first_cells

LOOK_BYTES = 2**20
LOOK_LINES = 10_000
COLUMNS_SHOWN = 12


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
