"""Tables whose cells stand behind a space, or whose quotes a backslash escapes; others keep their bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.config import SourceConfig
from data_prep.files.formats import Format
from data_prep.read.delimited import read_csv
from data_prep.read.text_layouts import with_layout

SPACED = [f'"what is {n}?", "it is {n}"\n' for n in range(20)]
WITH_COMMA = [f'"what is {n}?", "yes, it is ""{n}"""\n' for n in range(20)]
ESCAPED = [f'"say \\"{n}, please\\" now","it is \\\\alpha {n}"\n' for n in range(20)]
SPARK = [f'"say \\"{n}, please\\" now","it is \\alpha \\\\ {n}"\n' for n in range(20)]
BOTH = [f'"say \\"{n}, please\\" now", "it is {n}"\n' for n in range(20)]
ORDINARY = [f'"he said, ""{n}""", yes \\{n}\n' if n else '1, "Hamlet" is a play\n' for n in range(20)]
WINDOWS = [f'"C:\\dir{n}\\","say ""{n}"""\n' for n in range(20)]


@pytest.mark.parametrize("rows, expected", [
    (SPACED, [f"what is {n}?|it is {n}" for n in range(20)]),
    (WITH_COMMA, [f'what is {n}?|yes, it is "{n}"' for n in range(20)]),
    (ESCAPED, [f'say "{n}, please" now|it is \\alpha {n}' for n in range(20)]),
    (SPARK, [f'say "{n}, please" now|it is \\alpha \\\\ {n}' for n in range(20)]),
    (BOTH, [f'say "{n}, please" now|it is {n}' for n in range(20)]),
    (ORDINARY, [f'he said, "{n}"| yes \\{n}' if n else '1| "Hamlet" is a play' for n in range(20)]),
    (WINDOWS, [f'C:\\dir{n}\\|say "{n}"' for n in range(20)]),
], ids=["spaced", "comma", "escaped", "spark", "both", "ordinary", "windows"])  # fmt: skip
@pytest.mark.parametrize("header", ["question,answer\n", '"question","answer"\n'])
def test_how_cells_are_enclosed_is_seen_and_ordinary_ones_keep_their_bytes(
    tmp_path: Path, header: str, rows: list[str], expected: list[str]
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(header + "".join(rows))
    form = with_layout(Format(kind="csv"), path, "a.csv", SourceConfig(path=str(path)))
    with path.open("rb") as file:
        found = ["|".join(row.values()) if isinstance(row, dict) else str(row) for row in read_csv(file, form)]
    assert found == expected
