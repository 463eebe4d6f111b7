from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError
from data_prep.config import SourceConfig
from data_prep.fetch.sources import Corpus, cut_slices, find_corpus


def found(*paths: Path | str, **settings: Any) -> Corpus:
    return find_corpus([SourceConfig(path=str(path), **settings) for path in paths], {})


def test_a_folder_gives_its_supported_files_in_order_and_counts_the_rest(corpus: Path) -> None:
    (corpus / "books" / "cover.PNG").write_bytes(b"x")
    (corpus / "books" / "LICENSE").write_bytes(b"x")
    (corpus / "books" / ".hidden.txt").write_text("x")

    result = found(corpus)

    names = [file.info.path.removeprefix(f"{corpus}/") for file in result.files]
    assert names == sorted(names) and len(names) == 14
    assert result.passed_over == {str(corpus): {".png": 1, "LICENSE": 1}}


def test_a_glob_and_a_single_file_give_what_they_name(corpus: Path) -> None:
    result = found(f"{corpus}/books/0[0-4].txt", corpus / "books" / "11.txt", f"{corpus}/**/pairs.jsonl")

    assert [file.location.name for file in result.files] == [*(f"0{n}.txt" for n in range(5)), "11.txt", "pairs.jsonl"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.txt", "no such file, folder or match"),
        ("*.csv", "no such file, folder or match"),
        ("picture.png", r"nothing to read here \(1 .png\); supported are .txt, .text, .md, .markdown, .rst"),
        ("hollow", r"nothing to read here \(no file\)"),
        ("void.txt", "the corpus is empty: 1 file with 0 bytes in all"),
    ],
)
def test_a_source_with_nothing_to_read_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "picture.png").write_bytes(b"x")
    (tmp_path / "void.txt").touch()
    (tmp_path / "hollow").mkdir()

    with pytest.raises(DataError, match=message):
        found(tmp_path / name)


def test_slices_cover_every_byte_once_and_cut_only_lines(corpus: Path) -> None:
    result = found(corpus)

    parts = [part for parts in cut_slices(result, 1000) for part in parts]

    sizes = [0] * len(result.files)
    for part in parts:
        assert part.start == sizes[part.file], "parts of a file follow each other"
        sizes[part.file] = part.end
    assert sizes == [file.info.bytes for file in result.files]
    assert len([part for part in parts if result.files[part.file].location.suffix == ".txt"]) == 12


def test_small_files_of_one_source_share_a_slice(corpus: Path) -> None:
    slices = cut_slices(found(corpus / "books", corpus / "pairs.jsonl"), 10**6)

    assert [len(parts) for parts in slices] == [12, 1]
