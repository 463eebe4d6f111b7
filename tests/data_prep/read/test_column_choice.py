"""The sample of rows that decides how a file is read."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.config import SourceConfig
from data_prep.files.formats import format_of
from data_prep.read.column_choice import SNIFFED_RECORDS, find_columns, parsed_rows, sampled


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("count", [1, 199, 200, 201, 224, 269, 399, 400, 1000, 5000])
def test_each_row_is_looked_at_once_however_long_the_file(tmp_path: Path, count: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    rows = [{"text": f"row {n} " + "x" * (n % 97)} for n in range(count)]
    if suffix == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=60)
    form = format_of(path.name)
    assert form is not None

    texts = [row["text"] for row in parsed_rows(sampled(path, form))[0]]

    assert len(texts) == len(set(texts)) <= count
    assert len(texts) >= min(count, SNIFFED_RECORDS) and texts[0] == rows[0]["text"]
    if suffix == "jsonl" and count == 5000:
        assert len(texts) == SNIFFED_RECORDS * 3 // 2 and "row 4" in texts[-1]


def test_rejected_rows_are_counted_once(tmp_path: Path) -> None:
    rows = [
        {"question": f"How deep is lake {n}?", "answer": None if n % 5 else f"{n} metres deep."} for n in range(200)
    ]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    notes = find_columns(tmp_path / "a.jsonl", SourceConfig(path="a.jsonl")).notes

    assert any(note.startswith("160 of the 200 rows looked at are rejected") for note in notes), notes
