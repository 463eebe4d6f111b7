"""A sample of what was left out, for each reason one file that people can read."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.disk.atomic_files import whole_folder

FOLDER = "rejected"


@dataclass(frozen=True, kw_only=True)
class RejectedSample:
    """A document that was left out: where it stands (a part or file, a record), why, and how it begins."""

    reason: str
    file: int
    record: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A document that is left out because of another: why, where its tokens are, and the file and record of both."""

    reason: str
    slice: int
    number: int
    place: tuple[int, int]
    leader: tuple[int, int]


def drawn(samples: Iterable[RejectedSample], limit: int) -> list[RejectedSample]:
    """Return up to `limit` samples of each reason: those whose texts have the smallest hashes.

    A draw of draws is a draw of all: the result depends on the documents, not on how they are cut into slices.
    """
    by_reason: dict[str, list[RejectedSample]] = {}
    for sample in samples:
        by_reason.setdefault(sample.reason, []).append(sample)
    return [sample for reason in sorted(by_reason) for sample in sorted(by_reason[reason], key=draw)[:limit]]


def draw(sample: RejectedSample) -> tuple[bytes, int, int]:
    """Return what samples are drawn by: the smallest come first."""
    text = sample.text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=8).digest(), sample.file, sample.record


def write_rejected(folder: Path, lines: Iterable[Mapping[str, str]]) -> None:
    """Make `folder` hold one file of JSON lines for each reason, all whole, and no others; without any, remove it."""
    texts: dict[str, str] = {}
    for line in lines:
        name = f"{file_name(line['reason'])}.jsonl"
        texts[name] = texts.get(name, "") + json.dumps(line, ensure_ascii=False) + "\n"
    if not texts:
        shutil.rmtree(folder, ignore_errors=True)
        return
    with whole_folder(folder) as partial:
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8", errors="backslashreplace")


def file_name(reason: str) -> str:
    """Return a reason as the name of a file."""
    return re.sub(r"[^A-Za-z0-9]+", "_", reason).strip("_").lower()
