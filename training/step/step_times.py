"""How long the parts of a step take, and a trace of chosen steps."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

Moment = Any  # seconds of a monotonic clock, or a CUDA event


@dataclass
class Laps:
    """The time that the device spends on named parts, one after the other, from the moment this is made.

    A GPU runs behind the host, so its time is measured by events in its own stream, and taking a lap waits for nothing.
    """

    device: torch.device
    taken: list[tuple[str, Moment, Moment]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.last = self.now()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to a part."""
        before, self.last = self.last, self.now()
        self.taken.append((name, before, self.last))

    def now(self) -> Moment:
        if self.device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part. On a GPU, only once it has done all that was measured: see `step`."""
        found: dict[str, float] = defaultdict(float)
        for name, before, after in self.taken:
            found[name] += before.elapsed_time(after) / 1e3 if self.device.type == "cuda" else after - before
        return dict(found)


@dataclass(kw_only=True)
class Profile:
    """Which steps (from 1) are traced, and where to: a file for each step and rank."""

    first: int
    last: int
    folder: Path
    rank: int
    before_writing: Callable[[int], None]
    """Called with the step (from 0) before its trace is written, which takes minutes if the model is large."""
    traced: int = 0

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Trace a step (from 0) if it is one of those: torch's profiler, for chrome://tracing or Perfetto.

        A trace that cannot be written is a warning: the step is taken.
        """
        if not self.first <= step + 1 <= self.last:
            yield
            return
        from torch.profiler import profile  # half a second, which a start without a profile need not wait for

        with profile() as trace:
            yield
        self.before_writing(step)
        path = self.folder / f"step-{step + 1:06d}-rank-{self.rank:05d}.json.gz"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trace.export_chrome_trace(str(path))
        except OSError as error:
            log.warning("%s: this trace was not written: %s", path, error)
            with suppress(OSError):
                path.unlink()  # a part of one
        else:
            self.traced += 1
