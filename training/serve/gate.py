"""What every request passes first: who may ask, from which page, and how large a body may be.

A server on localhost is open to every web page that its user visits: the page's script may send a POST there without
asking, or reach the server under a name of its own (DNS rebinding) and read the answers too. So a request that a
browser sends for another site is refused, and on localhost so is one whose `Host` is not a name of localhost.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

from training.serve.batching.limits import Limits
from training.serve.metrics import Metrics
from training.serve.refusals import RefusalError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
WITHOUT_KEY = frozenset({"/", "/health"})  # the page asks for the key itself
NOT_LOGGED = frozenset({"/health", "/metrics"})
LINGER_S = 10.0


class Gate:
    """An ASGI application before the application. `hosts`: the names to be asked by; None if any will do."""

    def __init__(self, app: App, limits: Limits, metrics: Metrics, *, key: str | None, hosts: frozenset[str] | None):
        self.app, self.limits, self.metrics, self.key, self.hosts = app, limits, metrics, key, hosts

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def noting_send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.answer(scope, receive, noting_send)
        finally:
            path = scope["path"] if scope["path"] in self.known_paths() else "other"
            self.metrics.requests.labels(path, str(status or 499)).inc()  # 499: the client has left, as nginx says
            if scope["path"] not in NOT_LOGGED:
                took = time.monotonic() - began
                log.info("%s %s %s in %.2f s", scope["method"], path, status or "left", took)

    def known_paths(self) -> frozenset[str]:
        routes = getattr(self.app, "routes", ())
        return frozenset(getattr(route, "path", "") for route in routes)

    async def answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self.check_host(headers)
            self.check_origin(headers)
            self.check_key(scope["path"], headers)
            body = await self.read(headers, receive)
        except RefusalError as refusal:
            await self.refuse(refusal, scope, receive, send)
        except ConnectionError:
            pass  # the client has left before its body was there
        else:
            await self.app(scope, replayed(body, receive), send)

    def check_host(self, headers: dict[str, str]) -> None:
        name = host_of(headers.get("host", ""))
        if self.hosts is not None and name not in self.hosts:
            raise RefusalError(
                403, f"Host is {name!r}; ask for localhost, or start the server with --allow-host {name}"
            )

    def check_origin(self, headers: dict[str, str]) -> None:
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise RefusalError(403, f"a page of {origin} may not use this server; use the server's own page")

    def check_key(self, path: str, headers: dict[str, str]) -> None:
        if self.key is None or path in WITHOUT_KEY:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key.encode()):
            told = "wrong key" if given else "no key"
            message = f"{told}; send the header `Authorization: Bearer KEY`"
            raise RefusalError(401, message, code="invalid_api_key")

    async def read(self, headers: dict[str, str], receive: Receive) -> bytes:
        """Return the body. Raises RefusalError if it is too large or too slow, ConnectionError if the client left."""
        largest, announced = self.limits.body_bytes, headers.get("content-length", "0")
        too_large = RefusalError(413, f"the body is larger than {largest:,} bytes; send less", code="body_too_large")
        if not announced.isdecimal() or int(announced) > largest:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_s):
                is_whole = False
                while not is_whole:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    body += message.get("body", b"")
                    if len(body) > largest:
                        raise too_large
                    is_whole = not message.get("more_body", False)
        except TimeoutError:
            raise RefusalError(408, f"the body was not here in {self.limits.body_s:g} s") from None
        return bytes(body)

    async def refuse(
        self, refusal: RefusalError, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        """Send a refusal and close the connection, whose body was not read.

        While a client still sends, closing at once would reset the connection and lose the answer: what still arrives
        is thrown away first, for some seconds.
        """
        response = refusal_response(refusal)
        headers = [*response.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        if refusal.status == 413:
            try:
                async with asyncio.timeout(LINGER_S):
                    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                        pass
            except TimeoutError:
                pass
        await send({"type": "http.response.body", "body": b""})


def refusal_response(refusal: RefusalError) -> JSONResponse:
    return JSONResponse(refusal.body(), status_code=refusal.status, headers=refusal.headers())


def host_of(header: str) -> str:
    """Return the name in a `Host` header, without its port."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body that was read, and then what comes: that the client has left."""
    parts: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Message:
        return next(parts, None) or await receive()

    return again
