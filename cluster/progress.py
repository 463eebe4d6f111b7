"""Progress of long work: share done, rate and time left, on one line of a terminal or in the log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TextIO, TypeVar

from cluster.terminal import LineInPlace, console

log = logging.getLogger(__name__)

Item = TypeVar("Item")

QUIET_S = 2.0  # shorter work shows no progress
LOG_S = 10.0  # between two lines of a log
DRAW_S = 0.2  # between two redraws of the line on a terminal
UNITS = {"bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))}


class StoppedError(Exception):
    """The work has ended, by success or failure: a thread that still reports progress should end too."""


class Progress:
    """Count finished work, from any thread, and show the progress; the line on a terminal is erased at the end.

    `total` is None if it is unknown.
    """

    def __init__(self, what: str, total: float | None, unit: str, stream: TextIO | None = None) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.place = LineInPlace(stream or console())
        self.done = 0.0
        self.is_over = False
        self.began = time.monotonic()
        self.next_told = self.began + (QUIET_S if self.place.is_possible else LOG_S)
        self.mutex = threading.Lock()

    def __enter__(self) -> Self:
        self.place.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.is_over = True
        self.place.close()

    def advance(self, amount: float = 1) -> None:
        """Add to what is done and show the progress if it is time to. Raises StoppedError when the work is over."""
        if self.is_over:
            raise StoppedError
        with self.mutex:
            self.done += amount
            now = time.monotonic()
            if now < self.next_told:
                return
            self.next_told = now + (DRAW_S if self.place.is_possible else LOG_S)
            if self.place.is_possible:
                self.place.draw(self.line(now))
            else:
                log.info("%s", self.line(now))

    def line(self, now: float) -> str:
        """Return the progress as text: the share, the rate and the time left."""
        elapsed_s = max(now - self.began, 1e-9)
        rate = self.done / elapsed_s
        speed = f"{amount_of(rate, self.unit)}/s"
        if self.total is None:
            return f"{self.what}: {amount_of(self.done, self.unit)}, {speed}"
        share = min(1.0, self.done / self.total) if self.total else 1.0
        left = f", {duration(max(0.0, self.total - self.done) / rate)} left" if rate else ""
        return f"{self.what}: {share:.0%} of {amount_of(self.total, self.unit)}, {speed}{left}"


class Waiting:
    """Show what the program waits for, and how long already, where the work cannot be counted; a thread redraws it.

    In a log: one line for each thing that takes longer than QUIET_S.
    """

    def __init__(self, what: str, stream: TextIO | None = None, *, is_shown: bool = True) -> None:
        self.what = what
        self.place = LineInPlace(stream or console())
        self.since = time.monotonic()
        self.told = ""
        self.is_over = threading.Event()
        self.mutex = threading.Lock()
        self.thread = threading.Thread(target=self.show_until_over, name="waiting", daemon=True) if is_shown else None

    def start(self) -> Self:
        if self.thread is not None:
            self.place.open()
            self.thread.start()
        return self

    def stop(self) -> None:
        """Erase the line. May be called twice, and before `start`."""
        self.is_over.set()
        if self.thread is not None and self.thread.is_alive():
            self.thread.join()
        self.place.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def turn_to(self, what: str) -> None:
        """Say what it waits for from now on."""
        with self.mutex:
            self.what, self.since = what, time.monotonic()

    def show_until_over(self) -> None:
        while not self.is_over.wait(DRAW_S):
            with self.mutex:
                what, waited_s = self.what, time.monotonic() - self.since
            if waited_s < QUIET_S:
                self.place.erase()
            elif self.place.is_possible:
                self.place.draw(f"{what} ({duration(waited_s)})")
            elif what != self.told:
                self.told = what
                log.info("%s", what)


def amount_of(value: float, unit: str) -> str:
    """Format an amount: bytes with kB, MB or GB, other units with thousands separators."""
    for size, name in UNITS.get(unit, ()):
        if value >= size:
            return f"{value / size:.1f} {name}" if size > 1 else f"{value:.0f} {name}"
    return f"{value:,.1f} {unit}" if value < 10 and value != int(value) else f"{value:,.0f} {unit}"


def duration(seconds: float) -> str:
    """Format a duration: 42 s, 3:05 min, 2:10 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def counted(items: Iterable[Item], amounts: Iterable[float], what: str, total: float, unit: str) -> Iterator[Item]:
    """Yield items and show the progress; each item adds its amount when it arrives."""
    with Progress(what, total, unit) as progress:
        for item, amount in zip(items, amounts, strict=True):
            progress.advance(amount)
            yield item


@contextmanager
def thread_pool(count: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Yield a thread pool; on an error or Ctrl-C, do not wait for the threads."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
