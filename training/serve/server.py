"""The server's life: it takes its port, proves its model, answers, and stops when it is asked to."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn

from cluster.errors import EXIT_DONE, EXIT_INTERRUPTED, ConfigError
from cluster.wording import count_of
from training.generate.answers import positions
from training.serve.answering import Served
from training.serve.app import make_app
from training.serve.batching.batch_check import proven_batch
from training.serve.batching.engine import Engine
from training.serve.batching.limits import Limits
from training.serve.gate import LOCAL_NAMES, Gate
from training.serve.metrics import Metrics

log = logging.getLogger(__name__)

LAST_WORDS_S = 5  # for answers to be sent after the time to finish is over


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where the server listens, and who may come in. `hosts`: names that it is asked by in addition to localhost."""

    host: str
    port: int
    key: str | None
    hosts: frozenset[str]

    @property
    def is_local(self) -> bool:
        return self.host in LOCAL_NAMES


def take_port(door: Door) -> socket.socket:
    """Return a socket bound to the address. Raises ConfigError if that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(door.host, door.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--port: cannot listen on {door.host}:{door.port} ({reason}); choose another") from None
    return bound


def start_engine(model: Any, tokenizer: Any, name: str, *, as_chat: bool, limits: Limits) -> Served:
    """Start what answers with a model. Raises CheckpointError if the model cannot be served."""
    longest = positions(model)
    if longest is not None and longest < limits.context_tokens:
        limits = limits.model_copy(update={"context_tokens": longest})
    engine, metrics = Engine(model, proven_batch(model), limits), Metrics()
    metrics.watch(lambda: engine.running, lambda: len(engine.waiting))
    engine.start()
    return Served(
        name=name,
        created=int(time.time()),
        as_chat=as_chat,
        model=model,
        tokenizer=tokenizer,
        engine=engine,
        limits=limits,
        metrics=metrics,
    )


def serve(served: Served, door: Door, bound: socket.socket, tell: Callable[[], None]) -> int:
    """Answer until a signal comes, finish what was begun, return the exit code; `tell` is called once it listens."""
    hosts = LOCAL_NAMES | door.hosts if door.is_local or door.hosts else None
    gate = Gate(make_app(served), served.limits, served.metrics, key=door.key, hosts=hosts)
    config = uvicorn.Config(
        gate,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(served.limits.grace_s) + LAST_WORDS_S,
    )
    server = SignalledServer(config, served.engine, tell)
    server.run(sockets=[bound])
    return EXIT_INTERRUPTED if server.stopped_by == signal.SIGINT else EXIT_DONE


class SignalledServer(uvicorn.Server):  # type: ignore[misc]  # uvicorn is not typed here
    """Stops at the first signal: no new requests, the others get `grace_s` to finish. A second one ends it at once."""

    def __init__(self, config: uvicorn.Config, engine: Engine, tell: Callable[[], None]) -> None:
        super().__init__(config)
        self.engine, self.tell = engine, tell
        self.stopped_by: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.tell()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal. uvicorn's own would end the process by the signal in the end, with an exit code of 143."""
        if self.stopped_by is not None:
            sys.stdout.flush()
            os._exit(EXIT_INTERRUPTED)
        self.stopped_by = sig
        self.should_exit = True
        self.engine.ends_at = time.monotonic() + self.config.timeout_graceful_shutdown - LAST_WORDS_S
        self.engine.is_closing = True  # a lock must not be taken in a signal's handler
        left = count_of(self.engine.in_flight, "request")
        log.info("stopping after %s in flight; a second signal ends them now", left)
