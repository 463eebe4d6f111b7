"""A run's status that is written again and again while the run goes on: in place on a terminal, else in blocks."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from types import FrameType
from typing import Any, NoReturn, TextIO

from cluster.errors import ShardlineError
from cluster.heartbeats.heartbeat_files import MOST_BYTES, parsed_object, read_small
from cluster.paths import RunPaths
from cluster.terminal import can_draw_in_place, fitted, size_of
from training.reporting.incidents import changes_text
from training.reporting.run_state import RunState, read_state
from training.reporting.status import is_going_on, lines_of, seconds_since_written, status_facts

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the alternate screen, without a cursor
HOME, ERASE_LINE, ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
BARS = "▁▂▃▄▅▆▇█"
SPARK_COLUMNS = 40
EVENTS_SHOWN = 4
REST = 10  # times as long as a look takes, at least, is between two looks: the metrics of a long run take a second


def watch(found: Callable[[bool], Iterator[list[str]]], stream: TextIO) -> None:
    """Write one look after the other, until there is no further one or Ctrl-C.

    `found` is told whether the stream can show bars.
    """
    is_screen = can_draw_in_place(stream)
    lines: list[str] = []
    try:
        with screen(stream) if is_screen else blocks(stream):
            for lines in found(has_bars(stream)):
                stream.write(frame(lines, stream) if is_screen else "\n".join(lines) + "\n\n")
                stream.flush()
    except KeyboardInterrupt:
        pass
    if is_screen:  # it is to stay readable above the prompt
        stream.write("\n".join(lines) + "\n")


def looks_at_all(folder_runs: Callable[[], Sequence[RunPaths]], seconds: float) -> Iterator[list[str]]:
    """Yield the list of a folder's runs again and again; the last look is one at which none goes on."""
    goes_on = True
    while goes_on:
        began = time.monotonic()
        now, runs = datetime.now(UTC), folder_runs()
        goes_on = any(goes_on_now(paths, now) for paths in runs)
        yield list_text(runs, now).splitlines()
        if goes_on:
            time.sleep(max(seconds, REST * (time.monotonic() - began)))


def goes_on_now(paths: RunPaths, now: datetime) -> bool:
    try:
        state = read_state(paths)
        return is_going_on(state, seconds_since_written(paths, state, now), now)
    except ShardlineError:
        return False  # its row says why


def looks(paths: RunPaths, seconds: float, bars: bool, queue: Callable[[], str] = lambda: "") -> Iterator[list[str]]:
    """Yield the lines of one look after the other; the last one is of a run that has ended, or cannot be read."""
    goes_on = True
    while goes_on:
        began = time.monotonic()
        now = datetime.now(UTC)
        state = read_state(paths)
        goes_on = is_going_on(state, seconds_since_written(paths, state, now), now)
        yield watch_lines(paths, state, now, bars=bars, queue=queue())
        if goes_on:
            time.sleep(max(seconds, REST * (time.monotonic() - began)))


def watch_lines(paths: RunPaths, state: RunState, now: datetime, *, bars: bool, queue: str = "") -> list[str]:
    """Return the status with the course of the loss, what the ranks do and the last events."""
    facts = status_facts(paths, state, now, queue)
    following = facts.pop("next")
    if bars and len(state.lines) > 1:
        facts["loss"] = loss_text([line["loss"] for line in state.lines])
    facts["ranks"] = ranks_text(paths) if state.attempts and not state.attempts[-1].end else ""
    lines = lines_of(facts)
    events = [event_text(event) for event in state.events[-EVENTS_SHOWN:]]
    lines += [f"{'' if number else 'events':<13}{text}" for number, text in enumerate(events)]
    return [*lines, f"{'next':<13}{following}"]


def loss_text(losses: Sequence[float]) -> str:
    """Return the course of the loss as a row of bars, each the mean of as many steps."""
    count = min(SPARK_COLUMNS, len(losses))
    edges = [number * len(losses) // count for number in range(count + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in pairwise(edges)]
    finite = [mean for mean in means if abs(mean) < float("inf")]  # a NaN compares as false
    if not finite:
        return ""
    low, spread = min(finite), max(finite) - min(finite) or 1.0
    drawn = "".join(BARS[round((mean - low) / spread * 7)] if mean in finite else "x" for mean in means)
    return f"{losses[0]:.4f} {drawn} {losses[-1]:.4f}"


def ranks_text(paths: RunPaths) -> str:
    """Return how many ranks are in which phase of which step, from their heartbeats."""
    view = parsed_object(read_small(paths.heartbeats / "all-ranks.json", MOST_BYTES))
    doing: dict[str, int] = {}
    hosts = view.get("hosts")
    for host in hosts if isinstance(hosts, list) else []:
        for rank in host.get("ranks", []) if isinstance(host, dict) else []:
            if isinstance(rank, dict) and {"phase", "step"} <= rank.keys() and isinstance(rank["step"], int):
                text = f"{rank['phase']} of step {rank['step'] + 1:,}"
                doing[text] = doing.get(text, 0) + 1
    return ", ".join(f"{count} in {text}" for text, count in sorted(doing.items(), key=lambda item: -item[1])[:3])


def event_text(event: dict[str, Any]) -> str:
    """Return an event in a few words, with its time of day here."""
    moment = datetime.fromisoformat(event["time"]).astimezone().strftime("%H:%M:%S")
    step = f" at step {event['step']:,}" if isinstance(event.get("step"), int) else ""
    value = f": loss {event['loss']:.4f}" if event["event"] == "validation" else ""
    reason = f": {event['reason']}" if isinstance(event.get("reason"), str) else ""
    who = f": rank {event['rank']} on {event['host']}" if {"rank", "host"} <= event.keys() else ""
    changed = f": {changes_text(event['changed'])}" if isinstance(event.get("changed"), dict) else ""
    return f"{moment}  {event['event']}{step}{who}{value}{changed}{reason}"


def has_bars(stream: TextIO) -> bool:
    """Return whether a stream's encoding has the characters of the loss's bars."""
    try:
        BARS.encode(stream.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def frame(lines: Sequence[str], stream: TextIO) -> str:
    """Return what draws the lines over the last ones, cut to the terminal's size of this moment."""
    columns, rows = size_of(stream)
    # of what does not fit, the middle is left out: the last line says what to type next
    shown = lines if len(lines) < rows else [*lines[: max(0, rows - 2)], lines[-1]]
    return HOME + "".join(f"{fitted(line, columns - 1)}{ERASE_LINE}\r\n" for line in shown) + ERASE_BELOW


@contextmanager
def screen(stream: TextIO) -> Iterator[None]:
    """Draw on the terminal's alternate screen; the one before comes back, even after TERM."""
    before = signal.signal(signal.SIGTERM, end_by_signal)
    stream.write(ENTER)
    try:
        yield
    finally:
        stream.write(LEAVE)
        stream.flush()
        signal.signal(signal.SIGTERM, before)


@contextmanager
def blocks(stream: TextIO) -> Iterator[None]:
    yield


def end_by_signal(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def list_text(runs: Sequence[RunPaths], now: datetime | None = None) -> str:
    """Return the runs of a folder, one line each; of one that cannot be read, the reason."""
    return "\n".join(columns_text([run_row(paths, now or datetime.now(UTC)) for paths in runs]))


def run_row(paths: RunPaths, now: datetime) -> tuple[str, str, str, str]:
    name = paths.root.name
    try:
        state = read_state(paths)
        facts = status_facts(paths, state, now)
    except ShardlineError as error:
        return name, "", "", str(error)
    loss = f"loss {state.lines[-1]['loss']:.4f}" if state.lines else ""
    of = f" of {state.total_steps:,}" if state.total_steps else ""
    return name, f"step {state.step:,}{of}" if state.lines else "no step", loss, facts["state"]


def columns_text(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
