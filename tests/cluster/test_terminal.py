"""A line in place looks right on a real terminal of any width, and nowhere else."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.terminal import fitted, width_of

ROOT = Path(__file__).resolve().parents[2]
WORK = """
import logging, sys
from cluster import progress
from cluster.journal.log import set_up_logging
progress.QUIET_S = progress.DRAW_S = 0.0
set_up_logging()
with progress.Progress("encoding a corpus of many books", 4, "slices") as work:
    for _ in range(3):
        work.advance()
    logging.getLogger("cluster").info("a fact")
"""


def on_a_terminal(code: str, columns: int, **variables: str) -> str:
    """Return what a program writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT), **variables}
    with subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env=environment):
        os.close(theirs)
        written = b"".join(chunks(ours))
    os.close(ours)
    return written.decode()


def chunks(terminal: int) -> Iterator[bytes]:
    with suppress(OSError):  # how Linux says that nobody has the other end open
        while chunk := os.read(terminal, 4096):
            yield chunk


def test_progress_is_one_line_of_a_terminal_cut_to_its_width() -> None:
    written = on_a_terminal(WORK, columns=40)
    drawn = [line for line in written.split("\r\x1b[K") if "encoding" in line]
    assert len(drawn) == 3
    assert all(width_of(line) < 40 and line.endswith("...") for line in drawn)


def test_a_log_line_erases_the_progress_before_it() -> None:
    written = on_a_terminal(WORK, columns=100)
    assert re.search(r"slices[^\n]*\r\x1b\[K[\d:]{8} I a fact\r\n", written)


def test_a_dumb_terminal_gets_no_escape_sequence() -> None:
    written = on_a_terminal(WORK, columns=100, TERM="dumb")
    assert "a fact" in written
    assert "\x1b" not in written


@pytest.mark.parametrize(
    ("text", "columns", "shown"), [("abcdef", 5, "ab..."), ("日本語日本語", 7, "日本..."), ("a\nb", 9, "a b")]
)
def test_a_text_is_cut_by_the_columns_that_it_takes(text: str, columns: int, shown: str) -> None:
    assert fitted(text, columns) == shown
