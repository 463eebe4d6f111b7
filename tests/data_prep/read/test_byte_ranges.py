"""A byte that changed touches the slices that read it, and what is prepared again is what a fresh preparation makes."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import DataError
from data_prep.config import SourceConfig
from data_prep.encode.tokenizer import train_tokenizer
from data_prep.fetch.sources import cut_slices, find_corpus
from data_prep.read.byte_ranges import content_of, hashed_file
from data_prep.read.parts import FilePart, read_part
from data_prep.rows.fields import Fields

STEP = 1024


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts and lines of a few kilobytes, so that every border is met."""
    for module in ("long_texts", "byte_ranges"):
        monkeypatch.setattr(f"data_prep.read.{module}.WINDOW_BYTES", 1500)
        monkeypatch.setattr(f"data_prep.read.{module}.REACH_BYTES", 200)
    for module in ("files.bounded_io", "read.records", "read.byte_ranges", "fetch.sources"):
        monkeypatch.setattr(f"data_prep.{module}.DOCUMENT_BYTES", 3000)


def parts_with_digests(path: Path) -> list[tuple[str, FilePart]]:
    corpus = find_corpus([SourceConfig(path=str(path), fields=Fields())], {}, None, STEP)
    parts = [part for parts in cut_slices(corpus, STEP) for part in parts]
    contents = [[*content_of(part, corpus.files[0].hashed), str(part.columns)] for part in parts]
    return [(json.dumps(content), part) for content, part in zip(contents, parts, strict=True)]


def read(part: FilePart) -> list[Any]:
    return list(read_part(part))


def lines(sizes: list[int]) -> bytes:
    rows = [{"text": f"{n} " + "a b " * (size // 4)} for n, size in enumerate(sizes)]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def text(sizes: list[int]) -> bytes:
    ends = ["\n\n", "\n", " ", "é"]
    return "".join("word" * (size // 4 + 1) + ends[n % 4] for n, size in enumerate(sizes)).encode() * 3


def check_changes(path: Path, chance: random.Random, end: int | None = None) -> None:
    """Change one byte at a time, mostly near borders; what has the digest of before must read what it read before."""
    compared = 0
    whole = path.read_bytes()
    end = end or len(whole)
    before = {digest: read(part) for digest, part in parts_with_digests(path)}
    near_borders = [border + chance.randint(-3, 3) for border in range(STEP, end, STEP)]
    for at in chance.sample(near_borders, min(9, len(near_borders))) + [
        chance.randrange(len(whole)) for _ in range(20)
    ]:
        data = bytearray(whole)
        data[at % len(data)] = chance.choice([10, 13, 32, 34, 65, 123, 125, 0, 195, 255])
        path.write_bytes(data)
        try:
            after = parts_with_digests(path)
        except DataError:  # then nothing is prepared at all
            continue
        for digest, part in after:
            assert digest not in before or read(part) == before[digest], (at, part)
            compared += digest in before
    assert compared > 0 or len(before) < 3


SIZES = [0, 9, 60, 300, 900, 1011, 1024, 2500, 4000, 7000]
CHANCE = st.integers(0, 2**32).map(random.Random)
ANY = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ANY
@given(chance=CHANCE)
def test_lines_with_an_old_digest_are_read_as_before(tmp_path: Path, chance: random.Random) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(chance.choices(SIZES, k=9)))
    check_changes(path, chance)


@ANY
@given(chance=CHANCE)
def test_pieces_of_a_long_text_with_an_old_digest_are_read_as_before(tmp_path: Path, chance: random.Random) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(text(chance.choices(SIZES, k=9)))
    check_changes(path, chance)


@settings(ANY, max_examples=4)
@given(chance=CHANCE)
def test_row_groups_with_an_old_digest_are_read_as_before(tmp_path: Path, chance: random.Random) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"text": [f"{n} {hashlib.sha256(bytes([n])).hexdigest() * 6}" for n in range(40)]})
    pq.write_table(table, path, row_group_size=4, compression=chance.choice(["none", "snappy"]))
    data = path.read_bytes()
    check_changes(path, chance, end=len(data) - 8 - int.from_bytes(data[-8:-4], "little"))  # before the footer


def test_another_footer_of_a_parquet_file_is_read_anew_by_every_part(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    found = []
    for note in (b"a", b"b"):
        table = pa.table({"text": [f"text {n}" * 99 for n in range(40)]}).replace_schema_metadata({"note": note})
        pq.write_table(table, path, row_group_size=4, compression="none", use_dictionary=False)
        found.append([digest for digest, _ in parts_with_digests(path)])
    assert len(found[0]) == len(found[1])
    assert not set(found[0]) & set(found[1])


@pytest.mark.parametrize(("kind", "touched"), [("lines", 2), ("text", 3), ("table", 3)])
def test_one_byte_in_the_middle_touches_only_its_neighbours(tmp_path: Path, kind: str, touched: int) -> None:
    path = tmp_path / {"lines": "rows.jsonl", "text": "book.txt", "table": "rows.parquet"}[kind]
    if kind == "table":
        rows = [f"{n} {hashlib.sha256(bytes([n])).hexdigest() * 6}" for n in range(80)]
        pq.write_table(pa.table({"text": rows}), path, row_group_size=2, compression="none", use_dictionary=False)
    else:
        path.write_bytes(lines([300] * 60) if kind == "lines" else text([300] * 60))
    before = [digest for digest, _ in parts_with_digests(path)]
    data = bytearray(path.read_bytes())
    middle = data.find(b"6" if kind == "table" else b"a b" if kind == "lines" else b"word", len(data) // 2)
    data[middle] ^= 1
    path.write_bytes(data)

    after = [digest for digest, _ in parts_with_digests(path)]

    assert len(after) == len(before) > 9
    assert 1 <= sum(one != other for one, other in zip(before, after, strict=True)) <= touched


def test_the_digest_of_a_file_that_is_hashed_by_ranges_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines([700] * 20))
    hashed = hashed_file(path, STEP)
    assert hashed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert hashed == hashed_file(path, STEP)
    assert len(hashed.ranges) == -(-hashed.bytes // STEP)


def test_rows_prepared_again_after_a_change_are_those_of_a_fresh_preparation(
    lines_file: Callable[..., Path], prepared: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    path = lines_file(*({"text": f"{n} geese sing over the lazy dog. " * (n % 7 + 1)} for n in range(60)))
    model = tokenizer_beside(path)
    fixed = {"slice_bytes": STEP, "validation_fraction": 0.2, "tokenizer": None, "model": model}
    first = prepared(path, **fixed)
    data = bytearray(path.read_bytes())
    for at in (len(data) // 2, len(data) // 3):
        data[data.index(b"geese", at)] = ord("G")
    path.write_bytes(data)
    caplog.clear()
    with caplog.at_level("INFO", "data_prep"):
        again = prepared(path, **fixed)
    (told,) = (
        message.split() for message in caplog.messages if message.endswith("reused")
    )  # N slices: N encoded, N reused
    fresh = prepared(path, into="fresh", **fixed)

    assert again.splits == fresh.splits != first.splits
    assert int(told[2]) <= 4 <= int(told[4])


def tokenizer_beside(path: Path) -> str:
    """Save a tokenizer that does not depend on the corpus."""
    folder = path.parent / "tokenizer"
    train_tokenizer(["The geese sing over the lazy dog. " * 9], 400).save_pretrained(folder)
    return str(folder)
