"""A rank's own log file: all that it, its libraries and its children write to standard output and error.

The descriptors themselves lead into the file: NCCL and a crash of native code are in it, and so is all that was written
before a SIGKILL. The first rank's output goes on to where it went before as well, by way of `tee`, which lives until it
has passed on everything. Of the other ranks, what Python logs as a warning or an error goes there too.
"""

from __future__ import annotations

import faulthandler
import io
import logging
import os
import signal
import stat
import subprocess
import sys
import traceback
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from cluster.paths import RANK_FILE
from cluster.terminal import console, show_on

log = logging.getLogger(__name__)

KEPT_ATTEMPTS = 10
KEPT_BYTES = 1 << 30  # of all attempts; the newest two are kept whatever they take
TEE_S = 5.0  # that `tee` has for the rest when its rank has ended: the reader of our output may be slow
OUT, ERROR = 1, 2
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGPIPE)


@contextmanager
def rank_log(path: Path, heading: str, *, is_shown: bool) -> Iterator[TextIO | None]:
    """Lead this process's output into a file; yield a stream to it, None if that cannot be done, which is told.

    With `is_shown` the output also goes on to where it went before. An error that passes through is written down.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(opened_log(path))
            stack.enter_context(redirected(path, file, is_shown=is_shown))
        except OSError as error:
            log.warning("this rank has no log of its own: %s", error)
            file = None
        if file is None:
            yield None
            return
        file.write(f"== {heading}\n")
        try:
            yield file
        except BaseException:
            file.write(traceback.format_exc())
            raise


@contextmanager
def opened_log(path: Path) -> Iterator[TextIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfailing(UnfailingFile(path, "a")) as file:
        yield file


@contextmanager
def redirected(path: Path, file: TextIO, *, is_shown: bool) -> Iterator[None]:
    """Lead standard output and error into the file, and have `console` be what standard error was."""
    before = {number: os.dup(number) for number in (OUT, ERROR)}
    with open(before[ERROR], "w", buffering=1, encoding="utf-8", errors="backslashreplace") as shown:  # noqa: PTH123
        tees = copies(path, before) if is_shown else {}
        pipes = {os.fstat(stdin_of(process)).st_ino for process in tees.values()}
        flush()
        for number in before:
            os.dup2(file.fileno() if not is_shown else stdin_of(tees[number]), number)
        for process in set(tees.values()):
            assert process.stdin is not None
            process.stdin.close()  # not by its number: the object would close that again, whosever it is then
        python = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (unfailing(UnfailingFile(number, "w", closefd=False)) for number in before)
        show_on(shown, file)
        faulthandler.enable(file=ERROR)
        try:
            yield
        finally:
            flush()
            sys.stdout, sys.stderr = python
            for number, descriptor in before.items():
                os.dup2(descriptor, number)
            for number in duplicates(pipes):
                os.dup2(before[ERROR], number, inheritable=False)
            for process in set(tees.values()):
                with suppress(subprocess.TimeoutExpired):  # a child of ours still has its input; it will end with it
                    process.wait(TEE_S)
            show_on(None)
            os.close(before[OUT])


class UnfailingFile(io.FileIO):
    """A file to write to. What a full disk does not take, or a `tee` that has gone, is lost, and ends no rank.

    The first loss in a log is told on the console; `has_lost` says that there was one.
    """

    has_lost = False

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:  # the run itself finds out what else it can no longer write
            self.tell_loss(error)
            return memoryview(data).nbytes

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # some disks say only here that they have not kept what was written
            self.tell_loss(error)

    def tell_loss(self, error: OSError) -> None:
        is_first, self.has_lost = not self.has_lost, True
        if is_first and not isinstance(self.name, int):  # not by `log`, which would write into this file again
            with suppress(OSError, ValueError, RuntimeError):  # the last: a handler of a signal came between
                print(f"{self.name}: {error.strerror}; output of this rank is lost", file=console(), flush=True)


def has_lost(file: TextIO) -> bool:
    """Return whether something that was written to a rank's log is not in it."""
    raw = getattr(file.buffer, "raw", None)
    return isinstance(raw, UnfailingFile) and raw.has_lost


def unfailing(raw: UnfailingFile) -> TextIO:
    """Return a stream of text that is written line by line: what is in a buffer is lost at a SIGKILL."""
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def copies(path: Path, before: Mapping[int, int]) -> dict[int, subprocess.Popen[bytes]]:
    """Start what writes both outputs into the file and to where they went; one process if that is one place."""
    first = tee(path, before[OUT])
    is_one = os.path.sameopenfile(before[OUT], before[ERROR])
    return {OUT: first, ERROR: first if is_one else tee(path, before[ERROR])}


def tee(path: Path, descriptor: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["tee", "-a", path],
        stdin=subprocess.PIPE,
        stdout=descriptor,
        stderr=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=outlive_signals,
    )


def outlive_signals() -> None:
    """In a new process: end when the input does, not by a signal that asks the rank to stop."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)


def stdin_of(process: subprocess.Popen[bytes]) -> int:
    assert process.stdin is not None
    return process.stdin.fileno()


def duplicates(pipes: Collection[int]) -> list[int]:
    """Return the descriptors of this process that still lead into one of these pipes, named by their inodes.

    A library may have duplicated standard output or error: DeepSpeed does so while it looks for a library in C, and
    never closes the duplicate. `tee` would wait for it, and this process for `tee`.
    """
    found = []
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:  # noqa: PTH208  (numbers, not paths)
        with suppress(OSError):  # that of the folder itself is closed by now
            facts = os.fstat(number)
            found += [number] if stat.S_ISFIFO(facts.st_mode) and facts.st_ino in pipes else []
    return found


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a closed pipe, or a stream that is closed
            stream.flush()


def remove_old(folder: Path) -> None:
    """Remove the ranks' files of old attempts: ten are kept, and of more than two together no more than 1 GiB."""
    sizes: dict[str, int] = defaultdict(int)
    newest: dict[str, float] = defaultdict(float)
    logs: dict[str, list[Path]] = defaultdict(list)
    for path in folder.glob("*"):
        match = RANK_FILE.fullmatch(path.name)
        with suppress(OSError):
            if match:
                facts = path.stat()
                logs[match[1]].append(path)
                sizes[match[1]] += facts.st_size
                newest[match[1]] = max(newest[match[1]], facts.st_mtime)
    total = 0
    for place, attempt in enumerate(sorted(logs, key=lambda attempt: -newest[attempt])):
        total += sizes[attempt]
        if place >= KEPT_ATTEMPTS or (place >= 2 and total > KEPT_BYTES):
            for path in logs[attempt]:
                with suppress(OSError):
                    path.unlink()
