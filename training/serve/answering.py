"""One answer, from the request's settings to its pieces of text, in the server's event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from training.generate.answers import find_stops
from training.generate.sampling import Sampling
from training.serve.answer_text import AnswerText
from training.serve.batching.engine import ClosingError, Engine, QueueFullError
from training.serve.batching.limits import Limits
from training.serve.batching.requests import Ended, Event, Request
from training.serve.metrics import Metrics
from training.serve.refusals import RefusalError

RETRY_S = 2  # told to a client that was refused for want of a place


@dataclass(frozen=True, kw_only=True)
class Served:
    """The model that is served, and what answers with it."""

    name: str
    created: int
    as_chat: bool
    model: Any
    tokenizer: Any
    engine: Engine
    limits: Limits
    metrics: Metrics


class Answering:
    """An answer that is being given. `reason`, `tokens` are known when its pieces have ended."""

    def __init__(self, served: Served, ids: list[int], sampling: Sampling, *, strip: bool) -> None:
        self.served, self.ids = served, ids
        self.reason, self.tokens = "", 0
        self.began = time.monotonic()
        self.first: float | None = None
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        stops = find_stops(served.model, served.tokenizer, sampling)
        self.text = AnswerText(served.tokenizer, ids, stops.texts, strip=strip)
        self.request = Request(
            ids=ids,
            stops=stops.ids,
            sampling=sampling,
            deadline=self.began + served.limits.request_s,
            deliver=self.deliver,
        )

    def deliver(self, event: Event) -> None:
        """Pass an event on to the event loop, from the engine's thread."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    async def pieces(self) -> AsyncIterator[str]:
        """Yield the text as it comes. Closing the iterator frees the slot. Raises RefusalError."""
        try:
            self.served.engine.submit(self.request)
        except QueueFullError:
            message = "too many requests are waiting; try again in a moment"
            raise RefusalError(429, message, code="queue_full", retry_s=RETRY_S) from None
        except ClosingError:
            raise RefusalError(503, "the server is stopping", code="stopping", retry_s=RETRY_S) from None
        self.served.metrics.tokens_in.inc(len(self.ids))
        try:
            while not self.reason:
                piece = self.taken(await self.next_events())
                if piece:
                    yield piece
        finally:
            self.served.engine.cancel(self.request)
            self.measure()

    async def next_events(self) -> list[Event]:
        """Return all that has come since the last time, at least one event."""
        events = [await self.events.get()]
        while not self.events.empty():
            events.append(self.events.get_nowait())
        return events

    def taken(self, events: list[Event]) -> str:
        """Return the new text of events, and note how the answer ended."""
        new = [event for event in events if not isinstance(event, Ended)]
        self.tokens += len(new)
        if new and self.first is None:
            self.first = time.monotonic()
            self.served.metrics.first_token.observe(self.first - self.began)
        piece = self.text.add(new) if new else ""
        if self.text.is_stopped:
            self.reason = "stop"
        elif isinstance(end := events[-1], Ended):
            self.check(end)
            self.reason = end.reason
            self.tokens += end.reason == "stop"  # the stop token counts
            piece += self.text.rest()
        return piece

    def check(self, end: Ended) -> None:
        if end.reason == "failed":
            self.reason = "failed"
            raise RefusalError(500, f"the model failed on this request: {end.message}", code="model_failed")
        if end.reason == "time" and not self.tokens:
            self.reason = "time"
            waited = f"{self.served.limits.request_s:g} s"
            raise RefusalError(504, f"no token in {waited}; try again later", code="timeout", retry_s=RETRY_S)

    def measure(self) -> None:
        metrics, now = self.served.metrics, time.monotonic()
        metrics.ended.labels(self.reason or "cancelled").inc()
        metrics.tokens_out.inc(self.tokens)
        metrics.whole.observe(now - self.began)
        if self.first is not None and self.tokens > 1 and now > self.first:
            metrics.speed.observe((self.tokens - 1) / (now - self.first))
