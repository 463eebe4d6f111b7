"""Read a run's journal as it grows: each new event and each new line of metrics once, in a consistent order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cluster.errors import ClusterError
from cluster.journal.records import is_event, parsed
from cluster.paths import RunPaths

REWINDING = ("start", "rollback")  # events after which the steps that follow `step` are taken again


class FileTail:
    """The whole lines that were added to a JSONL file; all of them if another file took its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream: BinaryIO | None = None
        self.number = 0

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the objects of the lines that were added. Raises ClusterError for a line that is no JSON object."""
        if self.stream is not None and self.is_replaced(self.stream):
            self.reopen()
        if self.stream is None:
            if not self.path.exists():
                return []
            # kept open: while it is, no other file can get its inode
            self.stream = self.path.open("rb")
            self.number = 0
        found: list[dict[str, Any]] = []
        while True:
            begin = self.stream.tell()
            line = self.stream.readline()
            if not line.endswith(b"\n"):
                self.stream.seek(begin)  # its end is not written yet, or a crash cut it short
                return found
            self.number += 1
            found.append(parsed(line.decode("utf-8", errors="replace"), self.path, self.number))

    def is_replaced(self, stream: BinaryIO) -> bool:
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return True
        return not os.path.samestat(now, os.fstat(stream.fileno()))

    def reopen(self) -> None:
        """Read from the beginning next time."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None


class JournalTail:
    """The events and metrics of a run, from its beginning."""

    def __init__(self, paths: RunPaths) -> None:
        self.older, self.attempts = FileTail(paths.older_attempts), FileTail(paths.attempts)
        self.metrics = FileTail(paths.metrics)

    def read(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the new events and the new lines of metrics.

        The lines are of the attempt that the events end in: a start cuts the metrics first and then writes its event,
        so lines that were read before a rewinding event was seen are read again.
        """
        events = self.new_events()
        while True:
            lines = [self.checked(line) for line in self.metrics.new_lines()]
            more = self.new_events()
            events += more
            if not any(event["event"] in REWINDING for event in more):
                return events, lines
            self.metrics.reopen()

    def new_events(self) -> list[dict[str, Any]]:
        found = self.older.new_lines() + self.attempts.new_lines()
        for event in found:
            if not is_event(event):
                raise ClusterError(f"{self.attempts.path}: damaged: not an event of a run: {str(event)[:60]}")
        return found

    def checked(self, line: Mapping[str, Any]) -> dict[str, Any]:
        if type(line.get("step")) is not int:
            raise ClusterError(f"{self.metrics.path}: damaged: no step in the line {str(line)[:60]}")
        return dict(line)

    def close(self) -> None:
        for tail in (self.older, self.attempts, self.metrics):
            tail.reopen()
