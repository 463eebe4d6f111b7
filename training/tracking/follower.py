"""Follow a run's journal and send it to one tracker, whatever the tracker does.

The cursor is written after the tracker has got what it counts: a kill at any moment loses nothing. What was sent and
not counted yet is sent again; TensorBoard drops the first copy.
"""

from __future__ import annotations

import logging
import shlex
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from cluster.config_loading import read_yaml
from cluster.disk.atomic_files import digest_of
from cluster.errors import ShardlineError
from cluster.paths import RunPaths
from training.tracking.configuration import sent_configuration
from training.tracking.journal_tail import JournalTail
from training.tracking.news import Selection
from training.tracking.records import Cursor, News, Target
from training.tracking.tracker import TRACKERS, Tracker, check_installed, open_tracker

log = logging.getLogger(__name__)

POLL_S = 2.0
RETRY_S = 10.0, 300.0  # first and longest wait before a tracker that failed is tried again
QUIET_S = 120.0  # a call of the library that takes longer is told
PORTION = 500  # steps that are sent and counted at a time


@dataclass
class Follower:
    """Sends one run to one tracker. `is_over` is set once nothing is added to the journal any more."""

    paths: RunPaths
    name: str
    is_over: threading.Event = field(default_factory=threading.Event)
    has_told: bool = False
    sent_steps: int = 0

    def follow(self) -> bool:
        """Send what there is and what is added, until `is_over`; return whether the tracker has all of it.

        Raises ConfigError if the tracker's library is missing, ClusterError if the journal cannot be read.
        """
        check_installed(self.name)
        wait_s, longest_s = RETRY_S
        while True:
            was_over = self.is_over.is_set()
            try:
                self.connect_and_send()
                return True
            except ShardlineError:
                raise
            except (Exception, SystemExit) as error:  # noqa: BLE001  (whatever a tracker's library raises)
                self.tell(error)
            if was_over:
                log.warning("tracker %s: not all was sent; to send it: shardline track %s", self.name, self.arguments)
                return False
            self.is_over.wait(wait_s)
            wait_s = min(2 * wait_s, longest_s)

    @property
    def arguments(self) -> str:
        return f"{shlex.quote(str(self.paths.root))} --to {self.name}"

    def tell(self, error: BaseException) -> None:
        """Say once that the tracker failed; the traceback of each failure goes where the library's output goes."""
        traceback.print_exception(error)
        if not self.has_told:
            self.has_told = True
            text = " ".join((str(error) or type(error).__name__).split())[:200]
            log.warning(
                "tracker %s failed, and is tried again from time to time; the run is not affected: %s; details: %s",
                self.name,
                text,
                self.paths.trackers / f"{self.name}.log",
            )

    def connect_and_send(self) -> None:
        """Send the journal from the cursor on, until `is_over`."""
        session = Session(self.paths, self.name)
        try:
            while True:
                is_last = self.is_over.is_set()
                with told_if_slow(self.name):
                    session.send_news()
                if session.tracker is not None and self.has_told:
                    log.info("tracker %s works again", self.name)
                    self.has_told = False
                if is_last:
                    break
                self.is_over.wait(POLL_S)
            with told_if_slow(self.name):
                session.close()
        finally:
            session.tail.close()
            self.sent_steps += session.sent_steps


class Session:
    """One connection to a tracker, from the cursor that the last one left."""

    def __init__(self, paths: RunPaths, name: str) -> None:
        self.paths, self.name, self.kind = paths, name, TRACKERS[name]
        self.path = paths.trackers / f"{name}.json"
        self.tail = JournalTail(paths)
        self.selection = Selection(Cursor.read(self.path), self.kind.can_purge)
        self.tracker: Tracker | None = None
        self.unsettled: deque[tuple[float, Cursor]] = deque()
        self.sent_steps = 0

    def send_news(self) -> None:
        """Send what was added to the journal since the last call.

        The library is not imported before there is a step: not beside the start of the ranks.
        """
        metrics = self.paths.metrics
        if self.tracker is None and not (metrics.exists() and metrics.stat().st_size):
            return
        news, cursor = self.selection.next(*self.tail.read())
        self.selection.check_complete()
        if news.is_empty:
            self.selection.cursor = cursor
        else:
            if self.tracker is None:
                self.tracker, cursor = self.opened(cursor)
            self.send(self.tracker, news, self.selection.cursor)
            self.selection.cursor = cursor
            self.count(cursor)
        self.write_settled()

    def opened(self, cursor: Cursor) -> tuple[Tracker, Cursor]:
        """Return the tracker, opened at the position that its cursor's file names, and the cursor with what it got."""
        if not self.path.exists():
            self.selection.cursor.write(self.path)  # first: a kill must not leave a run there whose name nobody knows
        configuration = sent_configuration(self.paths)
        digest = digest_of(configuration)
        target = Target(
            id=cursor.id,
            name=str(read_yaml(self.paths.config)["name"]),
            folder=self.paths.trackers,
            configuration=configuration,
            is_configuration_new=digest != cursor.configuration,
        )
        tracker = open_tracker(self.name, target)
        tracker.purge(self.selection.cursor.step, self.selection.cursor.events)
        log.info("tracker %s: %s", self.name, tracker.look)
        return tracker, replace(cursor, configuration=digest)

    def send(self, tracker: Tracker, news: News, before: Cursor) -> None:
        """Send the steps, counted in portions, then what refers to them."""
        if news.rewound_to is not None:
            tracker.purge(news.rewound_to, before.events)
        for first in range(0, len(news.steps), PORTION):
            portion = news.steps[first : first + PORTION]
            tracker.send(portion, [])
            self.sent_steps += len(portion)
            self.count(replace(before, step=portion[-1].step))
            self.write_settled()
        tracker.send(sorted(news.validations, key=lambda point: point.step), news.notes)

    def count(self, cursor: Cursor) -> None:
        self.unsettled.append((time.monotonic(), cursor))

    def write_settled(self) -> None:
        """Write the newest cursor that the library has surely passed on."""
        settled = None
        while self.unsettled and time.monotonic() - self.unsettled[0][0] >= self.kind.settle_s:
            settled = self.unsettled.popleft()[1]
        if settled is not None:
            settled.write(self.path)

    def close(self) -> None:
        """Let the library send the rest, and write the cursor."""
        if self.tracker is not None:
            self.tracker.close()
        if self.unsettled:
            self.unsettled[-1][1].write(self.path)


@contextmanager
def told_if_slow(name: str) -> Iterator[None]:
    """Warn if a call of a tracker's library does not come back."""
    text = "tracker %s has not answered for %g s; the run is not affected"
    timer = threading.Timer(QUIET_S, lambda: log.warning(text, name, QUIET_S))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
