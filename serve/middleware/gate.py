"""Checks before every route: headers, keys, rate limits, bounded bodies; and what every reply has: metrics, safe headers."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.contract.problems import LET_IN, REPLY_HEADERS, ProblemError, body_too_large, too_many_bodies
from serve.middleware.access import access_of, find_route
from serve.middleware.callers import Caller, KeyRing, set_caller
from serve.middleware.headers import read_headers
from serve.replicas.metrics import Metrics

MAX_BODIES, MAX_BODIES_OF_CALLER = 512, 384
"""Bodies that may be on their way to a replica at once. Ray Serve gives a replica at most 1,000 requests at once."""


class Gate:
    """ASGI middleware around all routes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Sequence[BaseRoute],
        keys: KeyRing,
        metrics: Metrics,
        max_body_bytes: int,
        body_seconds: float,
    ) -> None:
        self._app, self._routes, self._keys, self._metrics = app, routes, keys, metrics
        self._max_body_bytes, self._body_seconds = max_body_bytes, body_seconds
        self._arriving = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let the routes answer it."""
        if scope["type"] == "websocket":  # no route has one
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, is_let_in = time.perf_counter(), 500, False

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": _with_reply_headers(message.get("headers", ()), is_let_in=is_let_in)}
            await send(message)

        try:
            headers = read_headers(scope)
            caller = self._caller(scope, headers)
            is_let_in = caller is not None
            body = await self._body(caller, headers, receive) if caller else b""
            await self._app(scope, _replayed(body, receive), watch)
        except ProblemError as error:
            await error.response()(scope, receive, watch)
        finally:
            self._metrics.count_request(_route_of(scope), status, time.perf_counter() - began)

    def _caller(self, scope: Scope, headers: dict[str, str]) -> Caller | None:
        """Return who asks; None at a public route, which has no body, so what is sent is not read."""
        needed = access_of(find_route(self._routes, scope), scope["method"])
        return None if needed == "public" else self._keys.check(scope, headers, needed)

    async def _body(self, caller: Caller, headers: dict[str, str], receive: Receive) -> bytes:
        set_caller(caller)
        if int(headers.get("content-length", 0)) > self._max_body_bytes:
            raise body_too_large(self._max_body_bytes)
        with self._arrival(caller):
            try:
                return await asyncio.wait_for(self._read(receive), self._body_seconds)
            except TimeoutError:
                detail = f"the body did not arrive within {self._body_seconds:g} seconds"
                raise ProblemError("body-too-slow", 408, "The body is too slow", detail) from None

    @contextlib.contextmanager
    def _arrival(self, caller: Caller) -> Iterator[None]:
        if self._arriving[caller.name] >= MAX_BODIES_OF_CALLER or self._arriving.total() >= MAX_BODIES:
            raise too_many_bodies()
        self._arriving[caller.name] += 1
        try:
            yield
        finally:
            self._arriving[caller.name] -= 1

    async def _read(self, receive: Receive) -> bytes:
        """Read the whole body, which the contract would do anyway, but stop at the limit."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise body_too_large(self._max_body_bytes)
            if message["type"] != "http.request" or not message.get("more_body", False):
                return bytes(body)


def _with_reply_headers(headers: Sequence[tuple[bytes, bytes]], *, is_let_in: bool) -> list[tuple[bytes, bytes]]:
    """Return a reply's headers with those of `REPLY_HEADERS` that it does not have, and `LET_IN` for whom was let in."""
    there, wanted = {name.lower() for name, _ in headers}, REPLY_HEADERS | ({LET_IN: "1"} if is_let_in else {})
    return [*headers, *((name.encode(), value.encode()) for name, value in wanted.items() if name.encode() not in there)]


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give the body again, then what else comes."""
    is_given = False

    async def again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _route_of(scope: dict[str, Any] | Scope) -> str:
    """Return the route's pattern, so that there are as many as routes; "other" for unknown ones."""
    return getattr(scope.get("route"), "path", None) or "other"
