"""A file of answers that is written whole at the end; until then, what is done is kept beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.disk.atomic_files import full_disk_named, write_text


class AnswerFile:
    """Collects one record for each prompt, in any order, and writes them in the prompts' order.

    An interrupted command leaves them in FILE.unfinished: the same command, which has the same digest, continues there.
    """

    def __init__(self, path: Path, digest: str, count: int) -> None:
        self.path, self.digest, self.count = path, digest, count
        self.unfinished = path.with_name(f"{path.name}.unfinished")
        self.records: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.records = self.kept()
        with full_disk_named(self.path):
            lines = [{"digest": self.digest}, *({"place": p, "record": r} for p, r in self.records.items())]
            write_text(self.unfinished, "".join(as_line(line) for line in lines))
        self.stream = self.unfinished.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stream.close()
        if error is None and len(self.records) == self.count:
            with full_disk_named(self.path):
                write_text(self.path, "".join(as_line(self.records[place]) for place in range(self.count)))
            self.unfinished.unlink()
        elif not self.records:
            self.unfinished.unlink()

    def kept(self) -> dict[int, dict[str, Any]]:
        """Return what the same command has left, by place; its last line may be torn."""
        try:
            lines = self.unfinished.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return {}
        found = [json.loads(line) for line in lines]
        if not found or found[0] != {"digest": self.digest}:
            return {}
        return {line["place"]: line["record"] for line in found[1:]}

    def add(self, place: int, record: dict[str, Any]) -> None:
        """Keep the record of a prompt, durably."""
        self.records[place] = record
        with full_disk_named(self.path):
            self.stream.write(as_line({"place": place, "record": record}))
            self.stream.flush()
            os.fsync(self.stream.fileno())


def as_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
