"""The lines before a table's rows: comments, and what Anki writes there about its columns.

Anki's exports have no header: lines such as `#separator:Comma` and `#tags column:3` tell how the notes are written
(docs.ankiweb.net/importing/text-files.html).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data_prep.files.formats import Format
from data_prep.read.delimited import distinct
from data_prep.read.table_dialect import first_cells, table_layout

ANKI = re.compile(
    r"#(separator|html|columns|tags|notetype|deck|if matches|(?:notetype|deck|tags|guid) column):(.*)", re.IGNORECASE
)
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "space": " ", "pipe": "|", "colon": ":"}
CARD = ("front", "back")  # the columns of a note that has two


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
        mark = SEPARATORS.get(named.lower(), named)
        return mark if len(mark) == 1 else None

    def names(self, form: Format, width: int) -> tuple[str, ...]:
        """Return the names of an Anki file's columns: its own, or those of a card."""
        if "columns" in self.told:
            return tuple(distinct(first_cells([f"{self.told['columns']}\n"], form)))
        given = {int(n): key.split()[0] for key, n in self.told.items() if key.endswith(" column") and n.isdecimal()}
        others = [number for number in range(1, width + 1) if number not in given]
        cards = CARD if len(others) == len(CARD) else [f"field{number}" for number in others]
        named = {**given, **dict(zip(others, cards, strict=True))}
        return tuple(named[number] for number in range(1, width + 1))


def preamble_of(lines: Sequence[str], separator: str | None) -> Preamble:
    """Return what stands before a table's header: lines with a `#` that have not as many cells as its rows."""
    told = list(itertools.takewhile(bool, (ANKI.fullmatch(line.strip()) for line in lines)))
    if told:
        return Preamble(len(told), {match[1].lower(): match[2].strip() for match in told if match})
    begun = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    rest = lines[len(begun) :]
    if not begun or not rest:
        return Preamble()
    form = Format(separator=table_layout(rest, separator)[0])
    width = len(first_cells(rest, form))
    header = next((n for n, line in enumerate(begun) if len(first_cells([line], form)) == width), len(begun))
    return Preamble(header)
