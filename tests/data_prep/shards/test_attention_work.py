"""The attention work of each row: in a file of its own, or from the shards alone, as older data has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import DataError
from data_prep.shards import Manifest, ShardReader, read_manifest
from data_prep.shards.attention_work import ATTENTION_WORK
from data_prep.shards.writing import write_manifest
from data_prep.verify import verify

NAME = ATTENTION_WORK.name


@pytest.fixture
def data(prepared: Callable[..., Manifest], corpus: Path, tmp_path: Path) -> Path:
    prepared(corpus, shard_rows=16)
    return tmp_path / "data"


def reader_of(folder: Path) -> ShardReader:
    return ShardReader(folder, read_manifest(folder), "train")


def test_the_file_has_the_sum_of_the_squared_lengths_of_each_rows_segments_and_is_listed(data: Path) -> None:
    reader = reader_of(data)
    expected = []
    for row in range(len(reader)):
        lengths = [piece.tokens for piece in reader.pieces(row)]
        expected.append(sum(length**2 for length in [*lengths, reader.row_tokens - sum(lengths)]))

    assert np.load(data / "train" / NAME).tolist() == reader.attention_work(range(len(reader))).tolist() == expected
    assert len(set(expected)) > 5 and f"train/{NAME}" in {item.path for item in read_manifest(data).others}


def test_data_of_an_older_version_without_the_file_has_the_same_work(data: Path) -> None:
    manifest = read_manifest(data)
    work = np.load(data / "train" / NAME).tolist()
    for split in ("train", "validation"):
        (data / split / NAME).unlink()
    others = [item for item in manifest.others if not item.path.endswith(NAME)]
    write_manifest(data, replace(manifest, others=others))

    reader = reader_of(data)

    assert [int(reader.attention_work([row])[0]) for row in range(len(reader))] == work
    assert len(reader.rows(range(len(reader))).input_ids) == len(work) and verify(data) == []


def test_a_wrong_number_is_noticed_when_its_row_is_read_and_verify_names_the_file(data: Path) -> None:
    path = data / "train" / NAME
    work = np.load(path, mmap_mode="r+")
    work[17] += 1
    work.flush()
    reader = reader_of(data)
    reader.attention_work([17])

    assert reader.rows([16, 18]).input_ids.any()
    with pytest.raises(DataError, match=f"row 17 has attention work {work[17] - 1}, {work[17]} is written; run `shar"):
        reader.rows([18, 17])
    (problem,) = verify(data)
    assert problem.startswith(f"{path}: damaged in bytes")


@pytest.mark.parametrize(
    ("damage", "says"),
    [(lambda whole: whole[:-8], "bytes, the manifest says"), (lambda whole: b"\0" * len(whole), "numbers of int64")],
)
def test_a_file_that_is_cut_or_of_another_kind_is_named_when_work_is_asked_for(
    data: Path, damage: Callable[[bytes], bytes], says: str
) -> None:
    path = data / "train" / NAME
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(DataError, match=f"{path}: .*{says}"):
        reader_of(data).attention_work([0])
