"""Few documents: a passage of each long text is held out, and of few others at least one; nothing is in two splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from data_prep.encode.tokenizer import train_tokenizer
from data_prep.select.held_out_passages import LEAST_TOKENS
from data_prep.shards import Manifest, ShardReader

Prepared = Callable[..., Manifest]
FIXED = {"validation_fraction": 0.1, "row_tokens": 64, "tokenizer": None}


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A tokenizer that does not depend on the corpus."""
    train_tokenizer(["A goose sings over the lazy dog, number 0123456789.\n\n" * 9], 400).save_pretrained(
        tmp_path / "m"
    )
    return str(tmp_path / "m")


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """Six books of 60 to 85 paragraphs."""
    (tmp_path / "books").mkdir()
    for n in range(6):
        paragraphs = (f"Goose {n} sings of the lazy dog number {n * 1000 + p * 7}.\n\n" for p in range(60 + 5 * n))
        (tmp_path / "books" / f"{n}.txt").write_text("".join(paragraphs))
    return tmp_path / "books"


def pieces_of(folder: Path, manifest: Manifest, split: str) -> dict[tuple[int, int], list[tuple[int, list[int]]]]:
    """Return the pieces of each document, by file and record: where they start, their ids."""
    reader = ShardReader(folder, manifest, split)
    found: dict[tuple[int, int], list[tuple[int, list[int]]]] = defaultdict(list)
    for row in range(len(reader)):
        at = 0
        for piece in reader.pieces(row):
            ids = reader.rows([row]).input_ids[0, at : at + piece.tokens].tolist()
            found[piece.source, piece.position].append((piece.start, ids))
            at += piece.tokens
    return {document: sorted(pieces) for document, pieces in found.items()}


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_each_book_is_whole_over_train_and_its_passage(
    books: Path, prepared: Prepared, model: str, tmp_path: Path, packing: str
) -> None:
    manifest = prepared(books, model=model, packing=packing, **FIXED)
    whole = prepared(books, model=model, into="whole", packing=packing, **{**FIXED, "validation_fraction": 0})

    train, held = (pieces_of(tmp_path / "data", manifest, split) for split in ("train", "validation"))
    expected = pieces_of(tmp_path / "whole", whole, "train")

    assert train.keys() == held.keys() == expected.keys()
    for document, pieces in expected.items():
        both = sorted([*train[document], *held[document]])
        assert [i for _, ids in both for i in ids] == [i for _, ids in pieces for i in ids]
        begins = [start for start, _ in both]
        assert begins == [sum(len(ids) for _, ids in both[:n]) for n in range(len(both))]  # no gap, no token twice
        passage = sum(len(ids) for _, ids in held[document])
        assert LEAST_TOKENS * 0.5 < passage < 0.15 * sum(len(ids) for _, ids in both)
    assert sum(manifest.tokens[use] for use in ("trained", "masked")) == sum(
        whole.tokens[use] for use in ("trained", "masked")
    )


def test_a_passage_begins_and_ends_with_a_paragraph(
    books: Path, prepared: Prepared, model: str, tmp_path: Path
) -> None:
    from data_prep.shards.tokenizer_files import open_tokenizer

    manifest = prepared(books, model=model, **FIXED)
    tokenizer = open_tokenizer(Path(model))
    for pieces in pieces_of(tmp_path / "data", manifest, "validation").values():
        text = tokenizer.decode([i for _, ids in pieces for i in ids])
        assert text.startswith("Goose ")
        assert text.endswith((".\n\n", "<|endoftext|>"))


def test_the_passage_of_a_book_is_its_own_whatever_stands_beside_it(
    books: Path, prepared: Prepared, model: str, tmp_path: Path
) -> None:
    first = pieces_of(tmp_path / "data", prepared(books, model=model, **FIXED), "validation")
    (books / "0.txt").unlink()
    after = pieces_of(tmp_path / "data", prepared(books, model=model, **FIXED), "validation")
    texts = [[[i for _, ids in pieces for i in ids] for pieces in found.values()] for found in (first, after)]
    assert sorted(texts[0][1:]) == sorted(texts[1])


def test_many_texts_hold_out_documents(
    lines_file: Callable[..., Path], prepared: Prepared, model: str, tmp_path: Path
) -> None:
    path = lines_file(*({"text": f"Goose number {n} sings. " * 150} for n in range(210)))
    manifest = prepared(path, model=model, **FIXED)
    train, held = (pieces_of(tmp_path / "data", manifest, split) for split in ("train", "validation"))
    assert held
    assert not train.keys() & held.keys()


@pytest.mark.parametrize(("how", "both"), [("documents", False), ("passages", True)])
def test_what_is_asked_for_is_done(
    lines_file: Callable[..., Path], prepared: Prepared, model: str, tmp_path: Path, how: str, both: bool
) -> None:
    path = lines_file(*({"text": f"Goose number {n} sings. " * 150} for n in range(210)))
    manifest = prepared(path, model=model, validation=how, **FIXED)
    train, held = (pieces_of(tmp_path / "data", manifest, split) for split in ("train", "validation"))
    assert (train.keys() == held.keys()) == both


@pytest.mark.parametrize(("count", "fraction", "held"), [(30, 1e-6, 1), (9, 1e-6, 0), (30, 0, 0)])
def test_of_few_pairs_one_is_held_out(
    lines_file: Callable[..., Path],
    prepared: Prepared,
    caplog: pytest.LogCaptureFixture,
    count: int,
    fraction: float,
    held: int,
) -> None:
    rows: list[Any] = [{"prompt": f"Count to {n}", "completion": "1 2 3"} for n in range(count)]
    with caplog.at_level("INFO"):
        manifest = prepared(lines_file(*rows), validation_fraction=fraction)
    assert manifest.rows("validation") == held
    assert ("so one is held out" in caplog.text) == bool(held)
    assert ("validation is empty" in caplog.text) == (fraction > 0 and not held)


def test_books_and_pairs_together_hold_out_passages_of_the_books_alone(
    books: Path, lines_file: Callable[..., Path], prepared: Prepared, model: str, tmp_path: Path
) -> None:
    pairs = lines_file(*({"prompt": f"Count to {n}", "completion": "1 2 3"} for n in range(60)))
    manifest = prepared(books, pairs, model=model, test_fraction=0.1, **FIXED)
    train, held, test = (pieces_of(tmp_path / "data", manifest, split) for split in ("train", "validation", "test"))
    both = train.keys() & held.keys()
    assert both == {document for document in held if document[0] < 6}
    assert not test.keys() & (train.keys() | held.keys())


def words(seed: int, count: int) -> str:
    random = Random(seed)
    return " ".join("".join(random.choices("abcdefghij", k=5)) for _ in range(count))


def splits_of(folder: Path, manifest: Manifest) -> dict[tuple[int, int], set[str]]:
    """Return the splits in which each document has tokens."""
    found: dict[tuple[int, int], set[str]] = defaultdict(set)
    for split in manifest.splits:
        if manifest.rows(split):
            for document in pieces_of(folder, manifest, split):
                found[document].add(split)
    return found


def test_the_one_document_that_is_held_out_has_no_twin_in_train(
    lines_file: Callable[..., Path], prepared: Prepared, model: str, tmp_path: Path
) -> None:
    twins = [{"prompt": words(n, 59) + last, "completion": "yes"} for n in range(10) for last in (" one", " two")]
    alone = {"prompt": words(99, 60), "completion": "no"}
    fixed: dict[str, Any] = {**FIXED, "validation_fraction": 1e-9, "row_tokens": 512, "cleaning": {}}

    manifest = prepared(lines_file(*twins, alone), model=model, **fixed)

    held = [place for place, splits in splits_of(tmp_path / "data", manifest).items() if splits == {"validation"}]
    assert held == [(0, 20)]
    assert prepared(lines_file(*twins), model=model, into="twins", **fixed).rows("validation") == 0


def test_a_passage_that_stands_in_another_book_is_not_held_out(
    prepared: Prepared, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "books").mkdir()
    own = [words(n, 900) for n in range(4)]
    for n, text in enumerate([own[0], own[1], own[2] + " " + own[0] + " " + own[3]]):
        (tmp_path / "books" / f"{n}.txt").write_text(text)

    with caplog.at_level("INFO"):
        manifest = prepared(tmp_path / "books", model=model, cleaning={"near_duplicates": "off"}, **FIXED)

    splits = splits_of(tmp_path / "data", manifest)
    assert splits[0, 0] == {"train"} and splits[1, 0] == {"train", "validation"}
    assert "found in other texts too, so not held out" in caplog.text


def test_a_short_text_that_stands_in_a_long_one_is_not_held_out_beside_it(
    prepared: Prepared, model: str, tmp_path: Path
) -> None:
    (tmp_path / "texts").mkdir()
    for n in range(40):
        text = words(n, 900)
        (tmp_path / "texts" / f"{n:02}-long.txt").write_text(text)
        (tmp_path / "texts" / f"{n:02}-short.txt").write_text(text[:360])

    manifest = prepared(tmp_path / "texts", model=model, cleaning={}, **{**FIXED, "validation_fraction": 0.2})

    splits = splits_of(tmp_path / "data", manifest)
    assert all(
        "validation" not in splits[file, 0] for file in range(1, 80, 2) if "train" in splits.get((file - 1, 0), ())
    )
