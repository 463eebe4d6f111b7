"""TensorBoard: event files below the run's folder, written with TensorBoard's own records.

A START record makes its readers drop what they have read of that step and later. One is written whenever the files
are opened, so what a kill has left after the cursor's position counts for nothing. Notes go into files of their own,
where the number of the note is the step: a rollback must not remove the note that tells of it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from cluster.machine import host_name
from training.tracking.records import Note, Point, Target

NAME = "events.out.tfevents."
NUMBER = re.compile(re.escape(NAME) + r"(\d+)\.")


class EventFile:
    """A new event file. Readers take the files of a folder in the order of their names."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        older = [int(match[1]) for path in folder.iterdir() if (match := NUMBER.match(path.name))]
        number = max([int(time.time()), *(one + 1 for one in older)])
        self.stream = (folder / f"{NAME}{number:010d}.{host_name()}.{os.getpid()}").open("xb")
        self.records = RecordWriter(self.stream)
        self.add(Event(file_version="brain.Event:2", wall_time=time.time()))

    def add(self, event: Event) -> None:
        self.records.write(event.SerializeToString())

    def restart_at(self, step: int) -> None:
        """Make readers drop what was written of this step and later."""
        start = SessionLog(status=SessionLog.START)
        self.add(Event(session_log=start, step=step, wall_time=time.time()))

    def sync(self) -> None:
        self.stream.flush()
        os.fsync(self.stream.fileno())


class TensorBoard:
    def __init__(self, target: Target) -> None:
        folder = target.folder / "tensorboard"
        self.look = f"tensorboard --logdir {target.folder.parent}"
        self.steps, self.notes = EventFile(folder), EventFile(folder / "events")
        if target.is_configuration_new:
            rows = "\n".join(f"| {key} | {value} |" for key, value in target.configuration.items())
            self.write_text("configuration", f"| key | value |\n|---|---|\n{rows}", 0, time.time())

    def purge(self, step: int, note: int) -> None:
        self.steps.restart_at(step + 1)
        self.notes.restart_at(note + 1)

    def send(self, points: Sequence[Point], notes: Sequence[Note]) -> None:
        for point in points:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self.steps.add(Event(step=point.step, wall_time=point.time_ms / 1000, summary=Summary(value=values)))
        for note in notes:
            self.write_text("events", note.text, note.number, note.time_ms / 1000)
        self.steps.sync()
        self.notes.sync()

    def write_text(self, tag: str, text: str, step: int, time_s: float) -> None:
        summary = Summary.FromString(text_pb(tag, text).SerializeToString())
        self.notes.add(Event(step=step, wall_time=time_s, summary=summary))

    def close(self) -> None:
        self.steps.stream.close()
        self.notes.stream.close()


def open_run(target: Target) -> TensorBoard:
    return TensorBoard(target)
