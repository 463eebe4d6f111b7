"""Reading and checking running text by the column gives what reading and checking it document by document gives."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.clean.cleaning import Cleaner
from data_prep.clean.prefilter import ANYTHING, NOTHING, SPACES, may_change
from data_prep.config import CleaningConfig
from data_prep.files.formats import Format
from data_prep.read import record_blocks
from data_prep.read.parts import PLAIN, Columns, Document, FilePart, Rejected, Turn, document_of, read_part
from data_prep.read.record_blocks import Texts, read_blocks

PECULIAR = [
    b'{"text": "a"} x',
    b'{"text": "a"}{"text": "b"}',
    b'{"text": "\\ud800"}',
    b'{"text": null}',
    b'{"text": 5}',
    b'{"text": "a", "text": "b"}',
    b'{"text": "a", "image": "x.png"}',
    b'{"text": "a", "id": "\xff"}',
    b'{"text": "\xff"}',
    b'{"other": "a"}',
    b'{"text": "a\x01"}',
    b'"alone"',
    b"",
    b"\xef\xbb\xbf" + b'{"text": "a"}',
    b'  {"text": "a"}',
    b'{"text": "a"',
]
TEXTS = ["a", "\u0000 \n b \u2028", "é\u0301 \U0001f600", "", '"\\/\b\t'] * 3
TEXTS_ALONE = Columns(shape="text", layout=PLAIN, names=("text",))
MARKS = " \t\n\r\x0b\x7f\x85\xa0\u0301\u1680\u2000\u2009\u201c\u202f\u205f\u20ac\u3000\ufeff\u00c3\u00a9\u0152aé.界"


def part_of(path: Path, kind: Any) -> FilePart:
    form = Format(kind=kind)
    size = path.stat().st_size
    return FilePart(file=0, location=str(path), start=0, end=size, columns=replace(TEXTS_ALONE, format=form))


def as_documents(part: FilePart) -> Iterator[Document | Rejected]:
    number = itertools.count()
    for block in read_blocks(part):
        if isinstance(block, Texts):
            yield from (Document(next(number), "text", (Turn("text", text.decode()),)) for text in block)
        else:
            yield from (document_of(next(number), raw, part.columns) for raw in block)


@pytest.mark.parametrize("line", PECULIAR)
def test_json_lines_give_the_same_documents_by_the_column_as_one_by_one(
    tmp_path: Path, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_blocks, "BLOCK_BYTES", 100)
    lines = [json.dumps({"text": text, "id": n}).encode() for n, text in enumerate(TEXTS)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([*lines, line, *lines]))
    part = part_of(path, "jsonl")

    found = list(as_documents(part))

    assert found == list(read_part(part))
    assert sum(isinstance(block, Texts) for block in read_blocks(part)) >= 2


@pytest.mark.parametrize("absent", [False, True])
def test_parquet_gives_the_same_documents_by_the_column_as_one_by_one(tmp_path: Path, absent: bool) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"id": range(600), "text": [*(TEXTS * 40)[:599], None if absent else "z"]})
    pq.write_table(table, path, row_group_size=250)
    part = part_of(path, "parquet")

    found = list(as_documents(part))

    assert found == list(read_part(part)) and len(found) == 600
    assert isinstance(found[-1], Rejected) == absent


def texts_of(texts: Sequence[str]) -> Texts:
    raw = [text.encode() for text in texts]
    first = np.cumsum([0, *map(len, raw)])
    return Texts(np.frombuffer(b"".join(raw), dtype=np.uint8), first)


@given(
    st.lists(st.text(st.one_of(st.sampled_from(MARKS), st.characters(exclude_categories=["Cs"])), max_size=12)),
    st.sampled_from(["nfc", "nfkc", "off"]),
    st.integers(1, 4),
)
def test_a_text_that_is_said_to_be_in_order_is_not_changed_by_cleaning(texts: list[str], form: Any, least: int) -> None:
    config = CleaningConfig(unicode=form, min_chars=least)
    cleaner = Cleaner(config)

    for text, changes in zip(texts, may_change(texts_of(texts), config, b"<end>"), strict=True):
        document = Document(0, "text", (Turn("text", text),))
        if changes == NOTHING:
            assert cleaner.cleaned(document) == document and not text.endswith("<end>")
        elif changes == SPACES:
            assert cleaner.cleaned(document) == cleaner.without_spaces(document)


def test_plain_english_is_in_order_and_what_is_looked_into_is_said() -> None:
    texts = ["A \u201ccaf\u00e9\u201d", "a \nb", "a\n", "e\u0301", "ends <end>", "", "Ã©"]
    controls = [f"a{control}b" for control in "\x01\x0b\x0c\x1c\x1f\x85\x92\x9f"]

    found = may_change(texts_of(texts + controls), CleaningConfig(), b"<end>").tolist()

    assert found == [ANYTHING, SPACES, SPACES, ANYTHING, ANYTHING, ANYTHING, ANYTHING, *[ANYTHING] * len(controls)]
    plain = texts_of(["A \u201ccafe\u201d\n\nisn\u2019t 5 \u20ac \u2013 na\u00efve.", "words, and\tmore"])
    assert may_change(plain, CleaningConfig(), b"<end>").tolist() == [NOTHING, NOTHING]
    assert may_change(plain, CleaningConfig(quality=["gopher"]), b"<end>").tolist() == [ANYTHING, ANYTHING]
