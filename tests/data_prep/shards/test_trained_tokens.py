"""The trained tokens of each row: in a file of their own, or in the shards' tables alone, as older data has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import DataError
from data_prep.shards import Manifest, ShardReader, read_manifest
from data_prep.shards.trained_tokens import TRAINED_TOKENS
from data_prep.shards.writing import write_manifest
from data_prep.verify import verify

NAME = TRAINED_TOKENS.name


@pytest.fixture
def data(prepared: Callable[..., Manifest], corpus: Path, tmp_path: Path) -> Path:
    prepared(corpus, shard_rows=16)
    return tmp_path / "data"


def make_older(folder: Path) -> None:
    """Turn data into what versions before the file of trained tokens wrote."""
    manifest = read_manifest(folder)
    others = [item for item in manifest.others if not item.path.endswith(NAME)]
    assert len(others) == len(manifest.others) - 2  # of train and validation
    for split in ("train", "validation"):
        (folder / split / NAME).unlink()
    write_manifest(folder, replace(manifest, others=others))


def counts_of(folder: Path) -> list[int]:
    reader = ShardReader(folder, read_manifest(folder), "train")
    return [reader.trained_tokens([row]) for row in range(len(reader))]


def test_the_file_has_the_trained_tokens_of_every_row_and_is_listed(data: Path) -> None:
    manifest = read_manifest(data)
    masks = ShardReader(data, manifest, "train").rows(range(manifest.rows("train"))).loss_mask

    assert np.load(data / "train" / NAME).tolist() == masks.sum(axis=1).tolist() == counts_of(data)
    assert f"train/{NAME}" in {item.path for item in manifest.others}


def test_older_data_without_the_file_has_the_same_counts_and_is_not_prepared_again(
    data: Path, prepared: Callable[..., Manifest], corpus: Path
) -> None:
    counts = counts_of(data)
    make_older(data)
    before = (data / "manifest.json").read_bytes()

    prepared(corpus, shard_rows=16)

    assert counts_of(data) == counts and verify(data) == []
    assert (data / "manifest.json").read_bytes() == before


def test_a_wrong_count_is_noticed_when_its_row_is_read_and_verify_names_the_file(data: Path) -> None:
    path = data / "train" / NAME
    counts = np.load(path, mmap_mode="r+")
    counts[17] += 1
    counts.flush()
    reader = ShardReader(data, read_manifest(data), "train")

    assert reader.rows([16, 18]).input_ids.any()
    with pytest.raises(DataError, match=f"row 17 has {counts[17] - 1} trained tokens, {counts[17]} counted; run `sh"):
        reader.rows([18, 17])
    (problem,) = verify(data)
    assert problem.startswith(f"{path}: damaged in bytes")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda whole: whole[:-4], "bytes, the manifest says"),
        (lambda whole: b"\0" * len(whole), "not an array of"),
        (lambda whole: whole.replace(b"<i4", b"<f4"), "not an array of"),
        (lambda whole: whole.replace(b"), }", b"),  "), "not an array of"),
    ],
)
def test_a_file_that_is_cut_or_of_another_kind_is_named_when_the_split_is_opened(
    data: Path, damage: Callable[[bytes], bytes], says: str
) -> None:
    path = data / "train" / NAME
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(DataError, match=f"{path}: .*{says}"):
        ShardReader(data, read_manifest(data), "train")


def test_a_file_that_is_missing_is_written_again_by_preparing(
    data: Path, prepared: Callable[..., Manifest], corpus: Path
) -> None:
    path = data / "train" / NAME
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match=f"{path}: missing"):
        ShardReader(data, read_manifest(data), "train")

    prepared(corpus, shard_rows=16)

    assert path.read_bytes() == whole
