from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest

from data_prep.near_duplicates import clusters, signatures
from data_prep.selection import splits_of
from data_prep.shards import Manifest, ShardReader, read_manifest

HELD_OUT = {"validation_fraction": 0.2, "test_fraction": 0.1}


def split_of_documents(folder: Path) -> dict[tuple[str, int], str]:
    """Return the split of each document that is in the rows, by its file and record."""
    manifest = read_manifest(folder)
    found: dict[tuple[str, int], str] = {}
    for split in manifest.splits:
        reader = ShardReader(folder, manifest, split)
        for piece in (piece for row in range(len(reader)) for piece in reader.pieces(row)):
            place = (manifest.files[piece.source].path, piece.position)
            assert found.setdefault(place, split) == split
    return found


def variants(count: int, copies: int) -> list[str]:
    """Return texts of 100 words, each with near duplicates of which one word differs, in a mixed order."""
    drawn = random.Random(5)
    texts = []
    for _ in range(count):
        words = [f"w{drawn.randrange(5000)}" for _ in range(100)]
        texts += [" ".join([*words[:99], f"end{copy}"]) for copy in range(copies)]
    return drawn.sample(texts, len(texts))


def rejected(manifest: Manifest) -> dict[str, int]:
    (entry,) = manifest.documents.values()
    assert entry["read"] == entry["kept"] + sum(entry["rejected"].values())
    return entry["rejected"]


def test_near_duplicates_of_running_text_are_dropped_but_the_first(lines_file, prepared, tmp_path):
    texts = variants(30, 4)
    path = lines_file(*({"text": text} for text in texts))

    manifest = prepared(path, cleaning={}, **HELD_OUT)

    first = {text.rsplit(" ", 1)[0]: n for n, text in reversed(list(enumerate(texts)))}
    assert rejected(manifest) == {"near duplicate": 90}
    assert {position for _, position in split_of_documents(tmp_path / "data")} == set(first.values())


def test_near_duplicates_of_pairs_are_kept_but_never_in_two_splits(lines_file, prepared, tmp_path):
    texts = variants(40, 5)
    path = lines_file(*({"prompt": text, "completion": "yes"} for text in texts))

    manifest = prepared(path, cleaning={}, **HELD_OUT)

    splits: dict[str, set[str]] = {}
    for (_, position), split in split_of_documents(tmp_path / "data").items():
        splits.setdefault(texts[position].rsplit(" ", 1)[0], set()).add(split)
    assert len(splits) == 40 and all(len(sides) == 1 for sides in splits.values())
    assert {side for sides in splits.values() for side in sides} == {"train", "validation", "test"}
    assert set(rejected(manifest)) == {f"near duplicate of {split}" for split in ("train", "validation", "test")}


def test_near_duplicates_of_all_shapes_can_be_dropped_or_left_alone(lines_file, prepared):
    path = lines_file(*({"prompt": text, "completion": "yes"} for text in [*variants(10, 3)] * 2))

    assert rejected(prepared(path, into="a", cleaning={"near_duplicates": "all"})) == {
        "duplicate": 30,
        "near duplicate": 20,
    }
    assert rejected(prepared(path, into="b", cleaning={"near_duplicates": "off", "duplicates": False})) == {}


@pytest.mark.parametrize("at_the_end", [True, False])
def test_more_data_moves_no_old_document(lines_file, prepared, tmp_path, at_the_end):
    texts = variants(60, 3)
    old = lines_file(*({"prompt": text, "completion": "yes"} for text in texts), name="old.jsonl")
    more = lines_file(*({"prompt": text[3:], "completion": "no"} for text in texts[::10]), name="new.jsonl")
    prepared(old, into="less", cleaning={}, **HELD_OUT)
    prepared(*([old, more] if at_the_end else [more, old]), into="more", cleaning={}, **HELD_OUT)

    before = split_of_documents(tmp_path / "less")
    after = {place: split for place, split in split_of_documents(tmp_path / "more").items() if place[0] == str(old)}

    assert all(after[place] == before[place] for place in before.keys() & after.keys())
    if at_the_end:
        assert after == before
    assert len(before.keys() & after.keys()) > 100


def test_near_duplicates_do_not_depend_on_slices_or_workers(lines_file, prepared):
    path = lines_file(*({"text": text} for text in variants(40, 4)))

    one = prepared(path, into="one", cleaning={}, **HELD_OUT)

    assert prepared(path, into="other", cleaning={}, **HELD_OUT, slice_bytes=5000, workers=2).digest == one.digest


def test_shares_are_held_out_by_the_hash_alone():
    key = np.random.default_rng(0).integers(0, 2**64, (20_000, 2), dtype=np.uint64)

    split = splits_of(key, (0.2, 0.1))

    assert np.bincount(split) / len(key) == pytest.approx([0.7, 0.2, 0.1], abs=0.02)
    assert (splits_of(key, (0.2, 0.0)) == np.where(split == 2, 0, split)).all()
    assert not splits_of(key, (0.0, 0.0)).any()


def leaks(texts: dict[tuple[str, int], str], splits: dict[tuple[str, int], str]) -> int:
    """Count the clusters of kept documents that lie in more than one split."""
    places = list(splits)
    cluster = clusters(signatures([texts[place] for place in places]), 0.8)
    sides: dict[int, set[str]] = {}
    for place, label in zip(places, cluster.tolist(), strict=True):
        sides.setdefault(label, set()).add(splits[place])
    return sum(len(side) > 1 for side in sides.values())


def test_nothing_leaks_between_the_splits_of_real_pairs(test_data, prepared, tmp_path):
    folder = test_data / "t0"
    settings = {"tokenizer": None, "model": str(test_data / "stories260k"), "validation_fraction": 0.1}
    texts = {
        (path.as_posix(), n): "{prompt}\n{completion}".format(**json.loads(line))
        for path in sorted(folder.iterdir())
        for n, line in enumerate(path.open(encoding="utf-8"))
    }

    manifest = prepared(folder, cleaning={}, **settings)
    prepared(folder, into="unguarded", **settings)

    assert leaks(texts, split_of_documents(tmp_path / "data")) == 0
    assert leaks(texts, split_of_documents(tmp_path / "unguarded")) > 50
    assert rejected(manifest)["duplicate"] == 271


def test_nothing_leaks_between_the_splits_of_real_dialogues(test_data, prepared, lines_file, tmp_path):
    rows = []
    for path in sorted((test_data / "self_dialogue").glob("*.csv")):
        for row in csv.DictReader(path.open(encoding="utf-8")):
            said = [text for name, text in row.items() if name.startswith("Answer.sentence") and text]
            roles = ("user", "assistant")
            rows.append({"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]})
    rows = [row for row in rows if len(row["messages"]) > 1]
    path = lines_file(*rows)
    tokenizer = {"train": {"vocab_size": 1024}}

    prepared(path, cleaning={}, validation_fraction=0.1, tokenizer=tokenizer, row_tokens=512)

    texts = {(str(path), n): "\n".join(m["content"] for m in row["messages"]) for n, row in enumerate(rows)}
    splits = split_of_documents(tmp_path / "data")
    assert leaks(texts, splits) == 0
    assert len(splits) == len(set(texts.values())) and 150 < list(splits.values()).count("validation") < 350
