"""What is measured of a corpus before it is prepared is what `prepare` then counts."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.preview.document_sizes import measure_documents

COUNT = 1000  # more than are sampled
RAIN = [
    (f"Wie viel Regen fiel am Tag {n}?", f"Am Tag {n} fiel {n % 7 + 1} Liter Regen. " * (n % 4 + 1))
    for n in range(COUNT)
]
SPOKEN = [
    {"talk": n // 2, "who": ("user", "assistant")[n % 2], "said": text}
    for n, text in enumerate(text for pair in RAIN for text in pair)
]
TABLE = "question;answer\n" + "".join(f"{asked};{answered}\n" for asked, answered in RAIN)
ROWS = [{"question": asked, "answer": answered} for asked, answered in RAIN]
JAPANESE = "question;answer\n" + "".join(f"{n}日目の雨は?;雨は{n}リットルでした。\n" for n in range(COUNT))
GROUPED = {"fields": {"group_by": "talk", "role": "who", "content": "said"}}

FORMS: dict[str, tuple[str, bytes, dict[str, Any]]] = {
    "UTF-16": ("a.csv", TABLE.encode("utf-16"), {}),
    "cp1252": ("a.csv", TABLE.replace("Wie viel", "Ähnlich über").encode("cp1252"), {"encoding": "cp1252"}),
    "packed": ("a.csv.gz", gzip.compress(TABLE.encode()), {}),
    "other letters": ("a.csv", JAPANESE.encode(), {}),
    "one list": ("a.json", json.dumps(ROWS).encode(), {}),
    "a list in an object": (
        "a.json",
        json.dumps({"of": "rain", "rows": ROWS}, indent=1).encode(),
        {"fields": {"rows": "rows"}},
    ),
    "grouped": ("a.jsonl", "".join(f"{json.dumps(row)}\n" for row in SPOKEN).encode(), GROUPED),
}


@pytest.mark.parametrize("form", FORMS)
def test_documents_and_tokens_are_measured_as_prepare_counts_them(
    form: str, config_of: Callable[..., Any], prepared: Callable[..., Any], tmp_path: Path
) -> None:
    name, content, source = FORMS[form]
    path = tmp_path / name
    path.write_bytes(content)
    data = {"path": str(path), **source}
    template = {"chat_template": "plain"} if form == "grouped" else {}

    measured = measure_documents(config_of(data, **template), None, may_add_tokens=True)
    counted = prepared(data, **template).documents[str(path)]

    assert measured is not None
    assert measured.documents == pytest.approx(counted["kept"], rel=0.05)
    assert measured.tokens == pytest.approx(counted["tokens"], rel=0.05)


def test_large_files_are_estimated_from_their_bytes_however_these_are_stored(
    config_of: Callable[..., Any], tmp_path: Path
) -> None:
    draw = random.Random(0)
    rows = [f"{n}日目の雨は?;{draw.randbytes(500).hex()}\n" for n in range(2 * COUNT + 500)]
    table = "".join(["question;answer\n", *rows])
    (tmp_path / "a.csv").write_bytes(table.encode("utf-16"))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(table.encode()))
    for path in tmp_path.iterdir():
        measured = measure_documents(config_of(path), None)
        assert measured is not None and measured.documents == pytest.approx(len(rows), rel=0.05)


def test_a_long_text_in_another_encoding_is_measured_once(config_of: Callable[..., Any], tmp_path: Path) -> None:
    text = "".join(f"Am Tag {n} fiel Regen auf die Straße.\n" for n in range(60_000))
    sizes = []
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / f"{encoding}.txt").write_bytes(text.encode(encoding))
        measured = measure_documents(config_of(tmp_path / f"{encoding}.txt"), None)
        sizes.append(measured.tokens if measured is not None else 0.0)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)
