"""One thread that owns the model: it takes waiting requests into the batch between two steps.

transformers has a continuous batching of its own. It is not used: of 15 architectures that were tried with 5.24 on the
CPU it answered 6, it knows neither a seed nor a repetition penalty for a request, and an error in a step ends all
requests of the step. This one answers every architecture of tests/models/families.py (see benchmarks/RESULTS.md).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any

import torch

from cluster.wording import count_of
from training.serve.batching.batch import Batch
from training.serve.batching.choosing import Chooser
from training.serve.batching.limits import Limits
from training.serve.batching.requests import Ended, Request

log = logging.getLogger(__name__)

FAILURES = 3  # failed steps that a request may have been in


class QueueFullError(Exception):
    """All slots are taken, and so are all places in the queue."""


class ClosingError(Exception):
    """The server is about to end."""


class Engine:
    """Answers requests with one model, up to `limits.slots` of them at the same time.

    `submit` and `cancel` may be called from any thread. Once `is_closing` is set it takes no more requests, and goes on
    with those that it has, until `ends_at` at most.
    """

    def __init__(self, model: Any, batch: Batch, limits: Limits) -> None:
        self.model, self.batch, self.limits = model, batch, limits
        self.slots = limits.slots  # fewer after a step that failed, most likely for want of memory
        self.waiting: deque[Request] = deque()
        self.changed = threading.Condition()
        self.is_closing = False
        self.ends_at: float | None = None  # after it, requests have had their time whatever their own deadline says
        self.thread = threading.Thread(target=self.work, name="engine", daemon=True)

    @property
    def running(self) -> int:
        return len(self.batch.rows)

    @property
    def in_flight(self) -> int:
        return self.running + len(self.waiting)

    def start(self) -> None:
        self.thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request. Raises QueueFullError or ClosingError."""
        with self.changed:
            if self.is_closing:
                raise ClosingError
            free = self.slots - self.running
            if len(self.waiting) >= max(free, 0) + self.limits.queue:
                raise QueueFullError
            self.waiting.append(request)
            self.changed.notify()

    def cancel(self, request: Request) -> None:
        """Take a request out before the next step; nothing more of it is delivered."""
        with self.changed:
            request.is_cancelled = True
            if request in self.waiting:
                self.waiting.remove(request)
            self.changed.notify()

    def work(self) -> None:
        """Answer requests for as long as the process lives."""
        try:
            with torch.inference_mode():
                while True:
                    self.wait()
                    self.drop_finished()
                    self.admit()
                    if self.running:
                        self.step()
        except BaseException as error:  # whatever it is, nobody may wait for an answer that cannot come
            self.is_closing = True
            with self.changed:
                for request in [*self.batch.rows, *self.waiting]:
                    self.fail(request, error)
            raise

    def wait(self) -> None:
        """Wait for a request."""
        with self.changed:
            while not self.in_flight:
                self.changed.wait()

    def drop_finished(self) -> None:
        """Take out what was cancelled, and what has had its time."""
        now = time.monotonic()
        is_over = self.ends_at is not None and now >= self.ends_at
        with self.changed:
            late = {request for request in self.waiting if is_over or request.deadline <= now}
            self.waiting = deque(request for request in self.waiting if request not in late)
        rows = [request for request in self.batch.rows if not request.is_cancelled]
        late |= {request for request in rows if is_over or request.deadline <= now}
        for request in late:
            request.deliver(Ended(reason="time"))
        self.remove({request for request in self.batch.rows if request.is_cancelled or request in late})

    def admit(self) -> None:
        """Take waiting requests into the free slots, the oldest first; each is read in a forward pass of its own."""
        while self.running < self.slots:
            with self.changed:
                if not self.waiting:
                    return
                request = self.waiting.popleft()
            try:
                if request.chooser is None:
                    request.chooser = Chooser(self.model, request.sampling, len(request.ids), request.stops)
                logits = self.batch.join(request)
            except Exception as error:  # noqa: BLE001  # whatever a model raises for one request must not end the others
                self.fail(request, error)
            else:
                self.take([request], logits[None])

    def step(self) -> None:
        """Give each request its next token."""
        try:
            logits = self.batch.step()
        except Exception as error:  # noqa: BLE001
            self.retry(error)
        else:
            self.take(list(self.batch.rows), logits)

    def take(self, requests: list[Request], logits: torch.Tensor) -> None:
        """Deliver the next token of each request by its logits [requests, vocab], and take out what has ended."""
        likeliest, broken = logits.argmax(-1).tolist(), logits.isnan().any(-1).tolist()
        ended = set()
        for number, request in enumerate(requests):
            try:
                if broken[number]:
                    raise FloatingPointError("the model's logits are not numbers")
                token = likeliest[number]
                if request.chooser is not None and not request.chooser.is_plain:
                    token = request.chooser.choose(request.ids + request.tokens, logits[number])
            except Exception as error:  # noqa: BLE001
                self.fail(request, error)
                ended.add(request)
                continue
            if self.deliver(request, token):
                ended.add(request)
        self.remove(ended)

    def deliver(self, request: Request, token: int) -> bool:
        """Tell a request its next token; return whether that was its last."""
        request.tokens.append(token)
        if token in request.stops:
            request.deliver(Ended(reason="stop"))
            return True
        request.deliver(token)
        if len(request.tokens) < request.sampling.tokens:
            return False
        request.deliver(Ended(reason="length"))
        return True

    def remove(self, gone: set[Request]) -> None:
        if not gone:
            return
        try:
            self.batch.remove(gone)
        except Exception as error:  # noqa: BLE001  # out of memory: the batch is copied
            self.retry(error, gone)

    def retry(self, error: Exception, gone: set[Request] | None = None) -> None:
        """After a failed step, read the requests anew, half as many at a time: the caches may be half written."""
        left = [request for request in self.batch.rows if request not in (gone or set())]
        self.batch.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.slots = max(1, len(left) // 2)
        told = count_of(len(left), "request")
        log.warning("a step with %s failed (%s); slots are now %d", told, error, self.slots)
        for request in left:
            request.failures += 1
        again = [request for request in left if len(left) > 1 and request.failures < FAILURES]
        for request in left:
            if request not in again:
                self.fail(request, error)
        with self.changed:
            self.waiting.extendleft(reversed([request for request in again if not request.is_cancelled]))

    def fail(self, request: Request, error: BaseException) -> None:
        """End one request with an error."""
        log.error("a request with a prompt of %d tokens failed", len(request.ids), exc_info=error)
        request.deliver(Ended(reason="failed", message=f"{type(error).__name__}: {error}"))
