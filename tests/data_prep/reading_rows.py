"""What a file of rows is read as, for the tests of how rows are read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from cluster.config_loading import validate
from data_prep.config import SourceConfig
from data_prep.fetch.sources import Corpus, find_corpus, parts_of
from data_prep.read.parts import Rejected, read_part

T = TypeVar("T")


def all_kept(items: Iterable[T | Rejected]) -> list[T]:
    """Return the items, none of which may be rejected."""
    found = list(items)
    kept = [item for item in found if not isinstance(item, Rejected)]
    assert kept == found
    return kept


def source_of(path: Path, **source: Any) -> SourceConfig:
    return validate(SourceConfig, {"path": str(path), "name": "source", **source}, "run.yaml")


def corpus_of(path: Path, **source: Any) -> Corpus:
    return find_corpus([source_of(path, **source)], {})


def read(path: Path, **source: Any) -> list[str | list[tuple[str, str]]]:
    """Return who says what in each record, or why it is rejected; a file that may be cut is read in many parts."""
    (file,) = corpus_of(path, **source).files
    return [
        item.reason if isinstance(item, Rejected) else [(turn.role, turn.text) for turn in item.turns]
        for part in parts_of(0, file, 64)
        for item in read_part(part)
    ]
