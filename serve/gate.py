"""Checks before every route: keys, rate limits, bounded bodies, metrics."""

import asyncio
import contextlib
import ipaddress
import logging
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.keys import KeyRecord, TokenBucket, find_key, read_keys
from serve.metrics import Metrics
from serve.problems import ProblemError, body_too_large, forbidden, rate_limited, unauthorised

logger = logging.getLogger(__name__)

PUBLIC = frozenset({"/", "/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/openapi.json"})
"""Public paths, which reveal nothing about the catalogue; so are those below /explorer/, the files of the page."""
ADMIN = frozenset({("POST", "/v1/items"), ("POST", "/v1/items/bulk"), ("POST", "/v1/models")})
CHANGING = frozenset({"PATCH", "DELETE"})
"""Methods that need an admin key on every path."""
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class KeyRing:
    """The keys of a file, which is read again when it changes; without a file only this machine is allowed."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._changed: tuple[float, int] | None = None
        self.records: list[KeyRecord] = []
        self._buckets: dict[str, TokenBucket] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the file if it changed.

        Raises:
            ValueError: it is missing or not one; the keys before stay.
        """
        if self._path is None:
            return
        stat = self._path.stat() if self._path.exists() else None
        changed = (stat.st_mtime, stat.st_size) if stat else None
        if changed is None or changed != self._changed:
            self.records, self._changed = read_keys(self._path), changed
            self._buckets = {key.name: TokenBucket(key.requests_per_second, key.burst) for key in self.records}

    def check(self, scope: Scope) -> None:
        """Let a request in.

        Raises:
            ProblemError: it has no valid key, or one of too low a role, or the key has used up its rate.
        """
        headers = dict(scope["headers"])
        if self._path is None:
            _check_local(scope, headers)
            return
        kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        record = find_key(self.records, key.strip()) if kind.lower() == "bearer" else None
        if record is None:
            raise unauthorised("send `Authorization: Bearer <key>` with a key of this deployment")
        needs_admin = (scope["method"], scope["path"]) in ADMIN or scope["method"] in CHANGING
        if needs_admin and record.role != "admin":
            raise forbidden(record.name, record.role)
        if wait := self._buckets[record.name].take():
            raise rate_limited(record.name, wait)


def _check_local(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Refuse requests from other machines, and from other sites' pages in this machine's browser; used without keys."""
    ends = [scope.get("client"), scope.get("server")]
    names = [urlsplit(f"//{headers.get(b'host', b'').decode('latin-1')}").hostname]
    if b"origin" in headers:
        names.append(urlsplit(headers[b"origin"].decode("latin-1")).hostname)
    if not all(end and _is_loopback(end[0]) for end in ends) or not _LOCAL_HOSTS.issuperset(names):
        raise unauthorised("this deployment has no keys, so it answers only on 127.0.0.1; set keys_file in serve/config.yaml")


def _is_loopback(address: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return False


class Gate:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, keys: KeyRing, metrics: Metrics, max_body_bytes: int, body_seconds: float) -> None:
        self._app, self._keys, self._metrics = app, keys, metrics
        self._max_body_bytes, self._body_seconds = max_body_bytes, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let the routes answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            body = await self._admit(scope, receive)
            await self._app(scope, _replayed(body, receive), watch)
        except ProblemError as error:
            await error.response()(scope, receive, watch)
        finally:
            self._metrics.count_request(_route_of(scope), status, time.perf_counter() - began)

    async def _admit(self, scope: Scope, receive: Receive) -> bytes:
        if scope["path"] not in PUBLIC and not scope["path"].startswith("/explorer/"):
            self._keys.check(scope)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self._max_body_bytes:
            raise body_too_large(self._max_body_bytes)
        try:
            return await asyncio.wait_for(self._read(receive), self._body_seconds)
        except TimeoutError:
            detail = f"the body did not arrive within {self._body_seconds:g} seconds"
            raise ProblemError("body-too-slow", 408, "The body is too slow", detail) from None

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
