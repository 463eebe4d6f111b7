from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.clean.near_duplicates import clusters, signatures
from data_prep.config import DataConfig
from data_prep.fetch.sources import Corpus, CorpusFile
from data_prep.read.byte_ranges import HashedFile
from data_prep.read.parts import Columns, FilePart
from data_prep.select.dedup_and_split import collect, drawn_repeats, first_equal, select, splits_of
from data_prep.select.ledger import count_documents
from data_prep.shards import Manifest, ShardReader, SourceFile, read_manifest
from tests.data_prep.clean.test_near_duplicates import words_of
from tests.data_prep.select.test_split_leakage import table_of

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
    return dict(entry["rejected"])


def test_near_duplicates_of_running_text_are_dropped_but_the_first(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    texts = variants(30, 4)
    path = lines_file(*({"text": text} for text in texts))

    manifest = prepared(path, cleaning={}, **HELD_OUT)

    first = {text.rsplit(" ", 1)[0]: n for n, text in reversed(list(enumerate(texts)))}
    assert rejected(manifest) == {"near duplicate": 90}
    assert {position for _, position in split_of_documents(tmp_path / "data")} == set(first.values())


def test_near_duplicates_of_pairs_are_kept_but_never_in_two_splits(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    texts = variants(40, 5)
    path = lines_file(*({"prompt": text, "completion": "yes"} for text in texts))

    manifest = prepared(path, cleaning={}, **HELD_OUT)

    splits: dict[str, set[str]] = {}
    for (_, position), split in split_of_documents(tmp_path / "data").items():
        splits.setdefault(texts[position].rsplit(" ", 1)[0], set()).add(split)
    assert len(splits) == 40 and all(len(sides) == 1 for sides in splits.values())
    assert {side for sides in splits.values() for side in sides} == {"train", "validation", "test"}
    assert set(rejected(manifest)) == {f"near duplicate of {split}" for split in ("train", "validation", "test")}


def test_near_duplicates_of_all_shapes_can_be_dropped_or_left_alone(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest]
) -> None:
    path = lines_file(*({"prompt": text, "completion": "yes"} for text in [*variants(10, 3)] * 2))

    assert rejected(prepared(path, into="a", cleaning={"near_duplicates": "all"})) == {
        "duplicate": 30,
        "near duplicate": 20,
    }
    assert rejected(prepared(path, into="b", cleaning={"near_duplicates": "off", "duplicates": False})) == {}


@pytest.mark.parametrize("at_the_end", [True, False])
def test_more_data_moves_no_old_document(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest], tmp_path: Path, at_the_end: bool
) -> None:
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


def test_near_duplicates_do_not_depend_on_slices_or_workers(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest]
) -> None:
    path = lines_file(*({"text": text} for text in variants(40, 4)))

    one = prepared(path, into="one", cleaning={}, **HELD_OUT)

    assert prepared(path, into="other", cleaning={}, **HELD_OUT, slice_bytes=5000, workers=2).digest == one.digest


def test_equal_hashes_are_led_by_the_first_of_them_and_half_equal_ones_by_none() -> None:
    drawn = np.random.default_rng(2)
    key = drawn.integers(0, 3, (400, 2)).astype(np.uint64) << np.uint64(60)
    key[200:] = drawn.integers(0, 2**64, (200, 2), dtype=np.uint64)

    seen: dict[tuple[int, ...], int] = {}
    assert first_equal(key).tolist() == [seen.setdefault(tuple(pair), n) for n, pair in enumerate(key.tolist())]


def test_shares_are_held_out_by_the_hash_alone() -> None:
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


def test_nothing_leaks_between_the_splits_of_real_pairs(
    test_data: Path, prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
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


def test_distinct_short_rows_are_all_kept(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    drawn = random.Random(8)
    words = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "dklmnrst"]
    texts = sorted({" ".join(drawn.choices(words, k=drawn.randint(2, 5))) for _ in range(1500)})
    pairs = sorted({(drawn.choice(words), drawn.choice(words)) for _ in range(1500)})
    text_file = lines_file(*({"text": text} for text in texts), name="texts.jsonl")
    pair_file = lines_file(*({"prompt": one, "completion": other} for one, other in pairs), name="pairs.jsonl")

    of_texts = prepared(text_file, into="texts", cleaning={}, validation_fraction=0.05)
    of_pairs = prepared(pair_file, into="pairs", cleaning={}, validation_fraction=0.05)

    assert rejected(of_texts) == rejected(of_pairs) == {}
    assert 45 < list(split_of_documents(tmp_path / "pairs").values()).count("validation") < 110


def test_what_becomes_of_a_document_of_several_sequences_is_decided_by_its_first() -> None:
    words = [words_of(60, seed) for seed in range(4)]
    texts = [" ".join(text) for text in (words[0], [*words[0], "end"], words[1], words[1], words[2], words[3])]
    table = table_of(texts, lines=[2, 3, 1, 2, 4, 1])
    parts = (FilePart(file=0, location="", start=0, end=1, columns=Columns(shape="messages")),)
    info = SourceFile(source="made", path="made", bytes=1, sha256="")
    corpus = Corpus(
        files=[CorpusFile(info=info, location=Path(), columns=parts[0].columns, hashed=HashedFile("", 1))],
        passed_over={"made": {}},
    )
    config = DataConfig.model_validate(
        {"sources": [{"path": "made"}], "validation_fraction": 0, "cleaning": {"near_duplicates": "all"}}
    )

    documents, records = collect([parts], [table], 1)
    selection = select(documents, [table], lambda lines: np.zeros(len(lines), np.bool_), config)
    counts = count_documents(corpus, records, documents, selection)["made"]

    assert selection.kept.tolist() == [True] * 2 + [False] * 3 + [True] + [False] * 2 + [True] * 5
    assert selection.leader.tolist() == [0, 0, 0, 0, 0, 5, 5, 5, 8, 8, 8, 8, 12]
    assert (counts["read"], counts["kept"], counts["tokens"]) == (6, 4, 3 * 8)
    assert counts["rejected"] == {"duplicate": 1, "near duplicate": 1}
    assert [repeat.number for repeat in drawn_repeats(documents, selection, 9)] == [6, 2]


def test_sequences_of_a_held_out_document_are_held_out_and_count_as_one() -> None:
    texts = [" ".join(words_of(60, seed)) for seed in range(400)]
    texts[300:] = [f"{text} end" for text in texts[:100]]
    table = table_of(texts, lines=[1 + n % 3 for n in range(400)])
    config = DataConfig.model_validate({"sources": [{"path": "made"}], "validation_fraction": 0.3})
    parts = (FilePart(file=0, location="", start=0, end=1, columns=Columns(shape="messages")),)

    documents, _ = collect([parts], [table], 1)
    selection = select(documents, [table], lambda lines: np.zeros(len(lines), np.bool_), config)

    lines = table.record
    assert all(len(set(selection.split[lines == n].tolist())) == 1 for n in range(400))
    assert all(len(set(selection.kept[lines == n].tolist())) == 1 for n in range(400))
    kept = {n: int(selection.split[lines == n][0]) for n in range(400) if selection.kept[lines == n][0]}
    assert all(kept.get(n) in (None, kept.get(n + 300)) or n + 300 not in kept for n in range(100))
    assert 20 < 400 - len(kept) < 70


def test_nothing_leaks_between_the_splits_of_real_dialogues(
    test_data: Path, prepared: Callable[..., Manifest], lines_file: Callable[..., Path], tmp_path: Path
) -> None:
    rows = []
    for path in sorted((test_data / "self_dialogue").glob("*.csv")):
        for row in csv.DictReader(path.open(encoding="utf-8")):
            said = [text for name, text in row.items() if name.startswith("Answer.sentence") and text.strip()]
            roles = ("user", "assistant")
            rows.append({"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]})
    rows = [row for row in rows if len(row["messages"]) > 1]
    path = lines_file(*rows)
    tokenizer = {"train": {"vocab_size": 1024}}

    prepared(path, cleaning={}, validation_fraction=0.1, tokenizer=tokenizer, row_tokens=512)

    texts = {(str(path), n): "\n".join(m["content"] for m in row["messages"]) for n, row in enumerate(rows)}
    splits = split_of_documents(tmp_path / "data")
    assert leaks(texts, splits) == 0
    assert len(splits) == len(set(texts.values())) - 1  # one is the beginning of another
    assert 150 < list(splits.values()).count("validation") < 350


def pairs_under(prompt: dict[str, str]) -> list[dict[str, str]]:
    """Return 400 different pairs, each with the columns of `prompt`."""
    return [{**prompt, "prompt": f"How deep is port {n}?", "completion": f"It is {n * 7} metres."} for n in range(400)]


LONG_PROMPT = " ".join(f"Rule {n} tells what word {n * n} means." for n in range(36))  # 250 words


@pytest.mark.parametrize("near_duplicates", ["text", "all"])
def test_the_system_text_of_a_source_makes_no_row_the_duplicate_of_another(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest], near_duplicates: str
) -> None:
    source = {"path": str(lines_file(*pairs_under({}))), "system": f"{LONG_PROMPT}\r\nBe brief."}

    manifest = prepared(
        source, row_tokens=2048, validation_fraction=0.05, cleaning={"near_duplicates": near_duplicates}
    )

    (entry,) = manifest.documents.values()
    assert entry["kept"] == 400 and manifest.rows("validation") > 0


def test_a_long_system_prompt_in_a_column_is_told_as_what_leaves_validation_empty(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest], caplog: pytest.LogCaptureFixture
) -> None:
    path = lines_file(*pairs_under({"system": LONG_PROMPT}))

    manifest = prepared(path, row_tokens=2048, validation_fraction=0.05, cleaning={"near_duplicates": "text"})

    lost = manifest.documents[str(path)]["rejected"]["near duplicate of many"]
    assert f"{lost} documents that were held out were rejected as 'near duplicate of many'" in caplog.text
    assert "more than 20 others" in caplog.text and "raise it" not in caplog.text
