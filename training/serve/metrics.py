"""What Prometheus reads at `/metrics`."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS_PER_S = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "shardline_requests", "Requests by path and status", ["path", "status"], registry=registry
        )
        self.ended = Counter("shardline_answers", "Answers by how they ended", ["reason"], registry=registry)
        self.tokens_in = Counter("shardline_prompt_tokens", "Tokens of prompts", registry=registry)
        self.tokens_out = Counter("shardline_answer_tokens", "Tokens of answers", registry=registry)
        self.first_token = Histogram(
            "shardline_first_token_seconds",
            "From a request to its first token, with its time in the queue",
            buckets=SECONDS,
            registry=registry,
        )
        self.whole = Histogram(
            "shardline_answer_seconds", "From a request to the end of its answer", buckets=SECONDS, registry=registry
        )
        self.speed = Histogram(
            "shardline_answer_tokens_per_second",
            "Of one answer, from its first token on",
            buckets=TOKENS_PER_S,
            registry=registry,
        )

    def watch(self, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Show the engine's requests."""
        Gauge("shardline_requests_running", "Requests being answered", registry=self.registry).set_function(running)
        Gauge("shardline_requests_waiting", "Requests waiting for a slot", registry=self.registry).set_function(waiting)

    def text(self) -> bytes:
        return bytes(generate_latest(self.registry))
