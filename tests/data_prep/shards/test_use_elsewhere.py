"""The programs in docs/use_elsewhere.md run as they stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.shards import Manifest, ShardReader, read_manifest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "use_elsewhere.md"
PROGRAMS = dict(re.findall(r"## ([\w ]+)\n\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))


@pytest.fixture
def run(corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    prepared(corpus, shard_rows=16)

    def execute(name: str) -> dict[str, Any]:
        names: dict[str, Any] = {"DATA": str(tmp_path / "data")}
        exec(PROGRAMS[name], names)  # noqa: S102  that it runs is what is tested
        return names

    return execute


def rows_of(folder: Path) -> Any:
    reader = ShardReader(folder, read_manifest(folder), "train")
    return reader.rows(range(len(reader)))


def test_the_page_has_a_program_of_five_lines_for_each(run: Callable[[str], dict[str, Any]]) -> None:
    assert {name: len(program.splitlines()) for name, program in PROGRAMS.items()} == {
        "torch": 5,
        "TensorFlow": 5,
        "pyarrow alone": 5,
    }


def test_torch_reads_a_split(run: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    names = run("torch")

    ids = {tuple(row) for row in rows_of(tmp_path / "data").input_ids.tolist()}
    assert all(tuple(row) in ids for row in names["batch"]["input_ids"].tolist())
    assert ((names["labels"] == -100) == ~names["batch"]["loss_mask"]).all()


def test_tensorflow_reads_a_split(run: Callable[[str], dict[str, Any]]) -> None:
    pytest.importorskip("tensorflow", reason="pip install --editable '.[tensorflow]'")

    names = run("TensorFlow")

    assert names["labels"].shape == (2, 64)


def test_pyarrow_alone_reads_a_split(run: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    names = run("pyarrow alone")

    last = rows_of(tmp_path / "data").input_ids[-len(names["input_ids"]) :]
    assert (names["input_ids"] == last).all()
