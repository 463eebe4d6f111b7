"""Folders as they lie on disks: links, circles, names that are no text, copies of datasets, files that change."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from cluster.errors import DataError
from data_prep.config import CleaningConfig, DataConfig, SourceConfig
from data_prep.encode.encoded_slices import SliceTask, encode_slice
from data_prep.encode.encoding import Encoder, write_spec
from data_prep.fetch.hub_layout import split_in_name, split_of
from data_prep.fetch.provenance import read_document
from data_prep.fetch.sources import cut_slices, find_corpus
from data_prep.preview.row_preview import preview
from data_prep.read.parts import read_part
from data_prep.shards import Manifest, ShardReader
from tests.data_prep.reading_rows import all_kept


def found(path: Path, **source: Any) -> tuple[list[str], Any]:
    """Return the names of the files that are read, below the path, and what was passed over."""
    corpus = find_corpus([SourceConfig(path=str(path), **source)], {})
    (passed_over,) = corpus.passed_over.values()
    return [os.path.relpath(file.info.path, path) for file in corpus.files], passed_over


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def test_linked_folders_are_read_once_and_circles_and_broken_links_are_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "far.txt").write_text("far")
    (folder / "b").mkdir()
    (folder / "b" / "near.txt").write_text("near")
    (folder / "a").symlink_to(folder / "b")
    (folder / "c").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "back").symlink_to(folder)
    (folder / "b" / "again.txt").symlink_to("near.txt")
    (folder / "d.txt").symlink_to("nowhere.txt")
    (folder / "e.txt").symlink_to("e.txt")
    os.mkfifo(folder / "pipe.txt")

    told = {"broken link": 2, "link to a file that is read already": 1, "neither file nor folder": 1}
    assert found(folder) == (["b/near.txt", "c/far.txt"], {**told, "link to a folder that is read already": 2})


def test_a_glob_goes_through_links_and_takes_each_file_once(folder: Path) -> None:
    (folder / "x" / "y").mkdir(parents=True)
    (folder / "x" / "y" / "one.txt").write_text("one")
    (folder / "x" / ".two.txt").write_text("two")
    (folder / "x" / "loop").symlink_to(folder / "x")
    (folder / "z").symlink_to(folder / "x" / "y")

    def names(pattern: str) -> list[str]:
        return [file.info.path for file in find_corpus([SourceConfig(path=f"{folder}/{pattern}")], {}).files]

    assert names("**/*.txt") == names("**") == names("x/*/o*.txt") == [f"{folder}/x/y/one.txt"]
    assert names("z/*.txt") == [f"{folder}/z/one.txt"] and names("*/.t*.txt") == [f"{folder}/x/.two.txt"]


@pytest.mark.parametrize("name", [b"caf\xe9.jsonl", b"caf\xe9.parquet", b"caf\xe9.arrow", b"a\\b\xe9\\xff.jsonl.gz"])
def test_a_name_that_is_not_utf8_is_read_written_and_found_again(
    folder: Path, tmp_path: Path, prepared: Callable[..., Manifest], config_of: Callable[..., DataConfig], name: bytes
) -> None:
    rows = [{"text": f"document number {n} of a file with a strange name"} for n in range(40)]
    path = folder / os.fsdecode(name)
    if name.endswith(b"parquet"):
        with path.open("wb") as sink:
            pq.write_table(pa.Table.from_pylist(rows), sink)
    elif name.endswith(b"arrow"):
        table = pa.Table.from_pylist(rows)
        with path.open("wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        body = "".join(json.dumps(row) + "\n" for row in [*rows, {"text": ""}]).encode()
        path.write_bytes(gzip.compress(body) if name.endswith(b"gz") else body)
    (folder / os.fsdecode(b"caf\xe9.zzz")).write_bytes(b"x")

    manifest = prepared(folder, validation_fraction=0.0)

    (file,) = manifest.files
    file.path.encode()
    assert file.path.startswith(str(folder)) and "\\xe9" in file.path
    piece = ShardReader(tmp_path / "data", manifest, "train").pieces(0)[0]
    assert json.loads(read_document(tmp_path / "data", manifest, 0, piece.position)) == rows[piece.position]
    shown = preview(config_of(folder), tmp_path / "other", None, 2, colour=False)
    assert "\\xe9" in shown.encode().decode()


def rows(count: int, first: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}."} for n in range(first, first + count)]


CARD = "---\nlicense: mit\n---\n# Sums\n"


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows(3)), path)
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows(3)))
        else:
            path.write_text(CARD if name.endswith("README.md") else f"Some prose about {name}.")


SHARDS = [f"data/{split}-0000{n}-of-00002.parquet" for split in ("test", "train") for n in (0, 1)]


@pytest.mark.parametrize(
    ("names", "split", "read", "left_out"),
    [
        (["README.md", *SHARDS], None, SHARDS[2:], {"description of the dataset": 1, "file of another split": 2}),
        (SHARDS, None, SHARDS[2:], {"file of another split": 2}),
        (SHARDS, "test", SHARDS[:2], {"file of another split": 2}),
        (["README.md", "a.jsonl"], None, ["a.jsonl"], {"description of the dataset": 1}),
        (["README.md", "a.jsonl", "train.jsonl", "load.py"], None, ["train.jsonl"],
         {"description of the dataset": 2, "file of another split": 1}),
        (["chat.jsonl", "train.jsonl", "val.jsonl"], None, ["chat.jsonl", "train.jsonl"], {"file of another split": 1}),
        (["test/0.jsonl", "train/0.jsonl"], None, ["train/0.jsonl"], {"file of another split": 1}),
        (["dev.jsonl", "train.jsonl"], "validation", ["dev.jsonl"], {"file of another split": 1}),
        (["train_gen.jsonl", "train_sft.jsonl"], "train_sft", ["train_sft.jsonl"], {"file of another split": 1}),
        (["x/README.md", "x/data/train.jsonl", "x/data/dev.jsonl", "y/test.jsonl", "y/a.txt"], None,
         ["x/data/train.jsonl", "y/a.txt", "y/test.jsonl"],
         {"description of the dataset": 1, "file of another split": 1}),
        # no copies: nothing is left out
        (["README.md", "training.md", "test_plan.txt", "test/notes.md"], None,
         ["README.md", "test/notes.md", "test_plan.txt", "training.md"], {}),
        (["contest.jsonl", "latest.jsonl", "train.jsonl"], None, ["contest.jsonl", "latest.jsonl", "train.jsonl"], {}),
        (["a/train.jsonl", "b/test.jsonl", "README.txt"], None, ["README.txt", "a/train.jsonl", "b/test.jsonl"], {}),
        (["a/train.jsonl", "a/data/test.jsonl"], None, ["a/data/test.jsonl", "a/train.jsonl"], {}),
        (["train.jsonl", "train2.jsonl"], None, ["train.jsonl", "train2.jsonl"], {}),
        (["test.jsonl", "validation.jsonl"], None, ["test.jsonl", "validation.jsonl"], {}),
    ],
)  # fmt: skip
def test_a_copy_of_a_dataset_gives_its_training_split_and_other_folders_all(
    folder: Path, names: list[str], split: str | None, read: list[str], left_out: dict[str, Any]
) -> None:
    write(folder, *names)

    assert found(folder, split=split) == (read, left_out)


def test_what_is_left_out_of_a_copy_is_told_in_a_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder, "README.md", *SHARDS)

    found(folder)

    (line,) = [record.getMessage() for record in caplog.records]
    assert "treated as a copy of a dataset: reading 2 files (the split train), skipping" in line
    assert "skipping README.md, data/test-00000-of-00002.parquet, data/test-00001-of-00002.parquet" in line


@pytest.mark.parametrize("pattern", ["*.txt", "*.jsonl"])
def test_files_whose_names_tell_splits_are_named_where_all_are_read(
    folder: Path, caplog: pytest.LogCaptureFixture, pattern: str
) -> None:
    write(folder, f"train{pattern[1:]}", f"test{pattern[1:]}")

    find_corpus([SourceConfig(path=f"{folder}/{pattern}")], {})

    assert f"some are named after splits: test{pattern[1:]}; write `split: train`" in caplog.text


def test_saved_datasets_give_the_files_of_one_split_and_no_cache(folder: Path) -> None:
    splits = DatasetDict(train=Dataset.from_list(rows(20)), other=Dataset.from_list(rows(5, 50)))
    splits.save_to_disk(str(folder / "saved"))
    (folder / "saved" / "train" / "cache-1f.arrow").write_bytes(
        (folder / "saved" / "other" / "data-00000-of-00001.arrow").read_bytes()
    )

    left_out = {"description of the dataset": 5, "file of another split": 1}
    name = "data-00000-of-00001.arrow"
    assert found(folder / "saved") == (
        [f"train/{name}"], {**left_out, "file that no split of the saved dataset lists": 1}
    )  # fmt: skip
    assert found(folder / "saved", split="other")[0] == [f"other/{name}"]
    assert found(folder / "saved" / "other") == ([name], {"description of the dataset": 2})
    with pytest.raises(DataError, match=r"no split dev, but train, other; .* `split: train`"):
        found(folder / "saved", split="dev")


def test_a_split_that_no_file_tells_is_an_error_that_names_those_there_are(folder: Path) -> None:
    write(folder, *SHARDS)

    with pytest.raises(DataError, match=r"no file name contains the split validation; .* test \(2 files\), train"):
        found(folder, split="validation")


def test_words_of_splits_are_whole_words() -> None:
    names = ["latest.jsonl", "contest.csv", "trained.csv", "a-train.csv", "dev/x.csv", "x_eval-00000-of-00001.parquet"]

    assert [split_of(name) for name in names] == [None, None, None, "train", "validation", "test"]
    assert [split_in_name(Path(name)) for name in (*names[3:], "my-train-set.csv")] == [
        "train",
        "validation",
        "test",
        None,
    ]


def test_the_parts_of_a_saved_web_page_are_not_read(folder: Path) -> None:
    write(folder, "page.html", "page_files/app.js", "page_files/more/frame.html", "other_files/app.js")

    assert found(folder, html="plain") == (["other_files/app.js", "page.html"], {"part of a saved web page": 2})


@pytest.mark.parametrize("name", ["LICENSE", "Makefile", "notes.xyz", "page.html"])
def test_any_file_is_read_as_the_format_that_the_source_gives(folder: Path, name: str) -> None:
    (folder / name).write_text("<p>as it stands</p>")

    corpus = find_corpus([SourceConfig(path=str(folder), format="text")], {})

    ((part,),) = cut_slices(corpus, 2**20)
    assert [document.turns[0].text for document in all_kept(read_part(part))] == ["<p>as it stands</p>"]


CHANGES: dict[str, Callable[[Path], object]] = {
    "grown": lambda path: path.write_text(path.read_text() + '{"text": "more"}\n'),
    "touched": lambda path: os.utime(path, ns=(1, 1)),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("column", ["text", "question"])
def test_a_file_that_changes_after_it_was_hashed_is_named_and_not_stored(
    folder: Path, encoder_with: Callable[..., Encoder], change: str, column: str
) -> None:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({column: f"a text, {n}", "answer": "yes"}) + "\n" for n in range(30)))
    corpus = find_corpus([SourceConfig(path=str(path))], {})
    write_spec(folder / "spec.json", encoder_with(None).spec)
    (parts,) = cut_slices(corpus, 2**20)
    target = folder / "slice.arrow"
    task = SliceTask(parts=parts, spec=folder / "spec.json", cleaning=CleaningConfig(), target=target)

    CHANGES[change](path)

    with pytest.raises(DataError, match=r"a.jsonl: (changed while it was read|can no longer be read)"):
        encode_slice(task)
    assert not target.exists()
