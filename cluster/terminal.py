"""One line of a terminal that is drawn again and again in its place, while log lines go by above it."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

from cluster.environment import terminal_type

ERASE = "\r\x1b[K"
UP_AND_ERASE = "\x1b[A\x1b[2K"
COLUMNS, ROWS = 80, 24  # where a terminal does not say
shown: list[TextIO] = []  # what standard error was, in a process whose output has been led into a log
logged: list[TextIO] = []  # and that log


def console() -> TextIO:
    """Return the stream that people read: standard error, or what it was before a log took its place."""
    return shown[-1] if shown else sys.stderr


def console_descriptor() -> int:
    """Return the descriptor that leads there, for a child process."""
    return shown[-1].fileno() if shown else 2


def show_on(stream: TextIO | None, log: TextIO | None = None) -> None:
    """Have `console` be this stream, in a process with this log; None: standard error again."""
    shown[:] = [] if stream is None else [stream]
    logged[:] = [] if log is None else [log]


@contextmanager
def printing_to_log() -> Iterator[None]:
    """Have what Python prints in the context in this process's log alone; nowhere if it has none, as in a replay."""
    with redirect_stdout(logged[-1] if logged else io.StringIO()):
        yield


def can_draw_in_place(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that knows escape sequences."""
    return stream.isatty() and terminal_type() != "dumb"


def erase_line(stream: TextIO) -> None:
    """Erase the line that the cursor is in, if the stream is a terminal."""
    if can_draw_in_place(stream):
        stream.write(ERASE)
        stream.flush()


def size_of(stream: TextIO) -> tuple[int, int]:
    """Return the columns and rows of a terminal now; it may be resized at any time."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):  # not a terminal after all: a test's text stream
        return COLUMNS, ROWS
    return size.columns or COLUMNS, size.lines or ROWS


def width_of(text: str) -> int:
    """Return how many columns a text takes: a Chinese character takes two, an accent of its own takes none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in ("W", "F")) for c in text)


def fitted(text: str, columns: int) -> str:
    """Return as much of a text, on one line, as fits into so many columns."""
    text = "".join(c if c.isprintable() else " " for c in text)
    if width_of(text) <= columns:
        return text
    while text and width_of(text) > max(0, columns - 3):
        text = text[:-1]
    return (text + "...")[: max(0, columns)]


class LineInPlace:
    """A line at the bottom of a terminal. Any thread may draw it; log lines of this process erase it first."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.is_possible = can_draw_in_place(stream)
        self.mutex = threading.RLock()  # a signal handler may log while its thread draws
        self.drawn = ""
        self.is_open = False

    def open(self) -> None:
        """Have the line make room for log records from now on."""
        self.is_open = True
        if self.is_possible:
            for handler in logging.getLogger().handlers:
                handler.addFilter(self.make_room)

    def close(self) -> None:
        """Erase the line, and draw it no more."""
        with self.mutex:
            self.is_open = False
            self.erase()
        for handler in logging.getLogger().handlers:
            handler.removeFilter(self.make_room)

    def draw(self, text: str) -> None:
        """Draw a text in place of the last one, cut to the terminal's width."""
        with self.mutex:
            if not self.is_possible or not self.is_open:
                return
            columns = size_of(self.stream)[0]
            text = fitted(text, columns - 1)  # a full last column would move the cursor to the next line
            self.write(self.erasing(columns) + text)
            self.drawn = text

    def erase(self) -> None:
        with self.mutex:
            if self.drawn:
                self.write(self.erasing(size_of(self.stream)[0]))
                self.drawn = ""

    def erasing(self, columns: int) -> str:
        """Return what erases the line: of a terminal that became narrower since, the lines that it was broken into."""
        broken = max(0, width_of(self.drawn) - 1) // max(1, columns)
        return ERASE + UP_AND_ERASE * broken

    def write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()

    def make_room(self, record: logging.LogRecord) -> bool:
        """Erase the line before a log record is written; installed as a filter on the root logger's handlers."""
        self.erase()
        return True
