"""How long the parts of a step take, and a trace of chosen steps."""

from __future__ import annotations

import functools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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
        self.last = moment(self.device)

    def lap(self, name: str) -> None:
        """Add the time since the last lap to a part."""
        before, self.last = self.last, moment(self.device)
        self.taken.append((name, before, self.last))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part. On a GPU, only once it has done all that was measured: see `step`."""
        found: dict[str, float] = defaultdict(float)
        for name, before, after in self.taken:
            found[name] += between(before, after, self.device)
        return dict(found)


def moment(device: torch.device) -> Moment:
    """Return this moment of the device's own work."""
    if device.type != "cuda":
        return time.monotonic()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def between(before: Moment, after: Moment, device: torch.device) -> float:
    """Return the seconds between two moments; on a GPU, only once it has reached the second."""
    return float(before.elapsed_time(after) / 1e3 if device.type == "cuda" else after - before)


class LayerClock:
    """The time of a model's decoder layers in a forward pass: what a rank computes while it waits for no other rank.

    Weights are gathered before a layer and released after it, by hooks around the `forward` that is measured here. A
    GPU's time is taken by events in its stream: nothing waits for them.
    """

    def __init__(self, layers: Sequence[torch.nn.Module], device: torch.device) -> None:
        self.device, self.is_on = device, False
        self.taken: list[tuple[Moment, Moment]] = []
        for layer in layers:
            layer.forward = self.timed(layer.forward)

    def timed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def measured(*arguments: Any, **named: Any) -> Any:
            if not self.is_on:
                return forward(*arguments, **named)
            began = moment(self.device)
            found = forward(*arguments, **named)
            self.taken.append((began, moment(self.device)))
            return found

        return measured

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure the layers that are called in the context, instead of those before."""
        self.taken.clear()
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False

    def seconds(self) -> dict[str, float]:
        """Return their time as `layers_s`; nothing if none was measured. When to call it: see Laps.seconds."""
        return {"layers_s": sum(between(*one, self.device) for one in self.taken)} if self.taken else {}


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
