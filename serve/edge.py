"""Middleware before Ray Serve's routing: if a replica dies, its requests are sent again, or get an error that can be retried.

Ray Serve's proxy calls `middlewares` if the environment variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it
(`serve.edge:middlewares`) where Ray is started. Requests in flight in a replica that dies have no answer then; without this
file the proxy makes them a bare 500. Here those that do the same when asked twice are asked again, of another replica; and what
the proxy itself refuses (too busy, not ready, too slow) comes in the form of all other problems.

Each request costs the proxy and a replica some milliseconds, also one that is refused. So those of strangers are few at a time.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.contract.problems import (
    LET_IN,
    LINE_IS_FULL,
    MEDIA_TYPE,
    ProblemError,
    deadline_passed,
    not_ready,
    overloaded,
    too_many_unknown,
)
from serve.middleware.access import SAFE_METHODS

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 1_000_000
"""A larger body is not kept, so its request is not asked again."""
PAUSES_SECONDS = (0.0, 0.2, 1.0)
"""Before each time of asking again."""
FULL_SECONDS = 0.1
"""How long a key's requests of a path are refused here after a replica said that its line is full: refusing in a replica costs it
time to decode."""
MAX_UNKNOWN, MAX_UNKNOWN_OF_KEY = 128, 32
"""Requests at once, of all keys and of one key or none, that no replica has let in yet."""
MAX_KNOWN = 100_000
"""Keys remembered as let in."""
OF_THE_PROXY = frozenset({"/-/healthz", "/-/routes"})
"""Paths that Ray Serve's proxy answers itself. Load balancers and Kubernetes ask them whether the node is alive, so no flood may
have them refused."""
ASKED_AGAIN = frozenset({"/v1/recommend", "/recommend", "/v1/recommend/batch", "/v1/completions", "/v1/items"})
"""Routes, below the application's prefix, whose POST does the same when asked twice. Nothing else but reading is asked again."""

_LINE_IS_FULL, _LET_IN = LINE_IS_FULL.lower().encode(), LET_IN.lower().encode()


def middlewares() -> list[Middleware]:
    """Return what Ray Serve's proxy puts around its routing."""
    return [Middleware(Edge)]


class Edge:
    """ASGI middleware of the proxy."""

    def __init__(
        self, app: ASGIApp, pauses_seconds: Sequence[float] = PAUSES_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._pauses, self._clock = app, pauses_seconds, clock
        self._full_until = dict[tuple[str, bytes], float]()
        """By path and key."""
        self._known = set[bytes]()
        """Keys that a replica let in; the empty one where none is needed."""
        self._unknown = Counter[bytes]()
        """Requests in flight of other keys."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a request answered, by another replica if the first one dies."""
        if scope["type"] != "http" or scope["path"] in OF_THE_PROXY:
            await self._app(scope, receive, send)
            return
        key = dict(scope["headers"]).get(b"authorization", b"")
        if self._clock() < self._full_until.get((scope["path"], key), 0.0):
            await overloaded(None).response()(scope, receive, send)
        elif key in self._known:
            await self._have_answered(key, scope, receive, send)
        elif self._unknown[key] >= MAX_UNKNOWN_OF_KEY or self._unknown.total() >= MAX_UNKNOWN:
            await too_many_unknown().response()(scope, receive, send)
        else:
            self._unknown[key] += 1
            try:
                await self._have_answered(key, scope, receive, send)
            finally:
                self._unknown[key] -= 1
                self._unknown = +self._unknown  # only keys with some

    async def _have_answered(self, key: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        kept, routed = _Kept(receive), dict(scope)
        for pause in (None, *self._pauses):
            if pause is not None:
                if not kept.is_whole or not _may_ask_again(routed):
                    break
                logger.warning("%s %r: no answer, its replica died; asking again", scope["method"], scope["path"])
                await asyncio.sleep(pause)
            answer, routed = _Answer(send), dict(scope)
            try:
                await self._app(routed, kept.again(), answer)
            except RuntimeError:
                logger.exception("%s %r: the proxy failed", scope["method"], scope["path"])
            if answer.is_full:
                self._remember_full((scope["path"], key))
            self._learn(key, answer)
            if answer.is_begun or kept.is_gone:
                return
        await not_ready().response()(scope, receive, send)

    def _learn(self, key: bytes, answer: "_Answer") -> None:
        if answer.is_let_in and len(self._known) < MAX_KNOWN:
            self._known.add(key)
        elif answer.is_unauthorised:
            self._known.discard(key)

    def _remember_full(self, asked: tuple[str, bytes]) -> None:
        now = self._clock()
        self._full_until = {one: until for one, until in self._full_until.items() if now < until} | {asked: now + FULL_SECONDS}


def _may_ask_again(routed: Scope) -> bool:
    """Whether a request does the same when asked twice; the proxy has written the application's prefix into its scope."""
    prefix, path = routed.get("root_path", ""), routed["path"]
    return routed["method"] in SAFE_METHODS or (
        routed["method"] == "POST" and path.startswith(prefix) and path[len(prefix) :] in ASKED_AGAIN
    )


class _Kept:
    """Receives a body once and gives it as often as needed."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._size = 0
        self.is_whole = True
        """Whether all that came is kept."""
        self.is_gone = False
        """Whether the client went away."""

    def again(self) -> Receive:
        """Return a `receive` that begins at the beginning."""
        place = 0

        async def receive() -> Message:
            nonlocal place
            if place < len(self._messages):
                place += 1
                return self._messages[place - 1]
            message = await self._receive()
            self._size += len(message.get("body", b""))
            if message["type"] == "http.disconnect":
                self.is_gone = True
            elif self._size <= MAX_BODY_BYTES:
                self._messages.append(message)
                place += 1
            else:
                self.is_whole = False
            return message

        return receive


class _Answer:
    """Forwards a replica's answer, and turns a refusal of the proxy into a problem."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._problem: ProblemError | None = None
        self.is_begun = False
        self.is_full = False
        """Whether the answer is that too many wait."""
        self.is_let_in = False
        """Whether the key was let in at a route that needs one."""
        self.is_unauthorised = False
        """Whether the key is none of the deployment's."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_begun = True
            self._problem = _refusal(message)
            names = {name.lower() for name, _ in message["headers"]}
            self.is_full = message["status"] == 429 and (self._problem is not None or _LINE_IS_FULL in names)
            self.is_let_in, self.is_unauthorised = _LET_IN in names, message["status"] == 401
            message = {**message, "headers": [each for each in message["headers"] if each[0].lower() != _LET_IN]}
            if self._problem is not None:
                response = self._problem.response()
                message = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        elif message["type"] == "http.response.body" and self._problem is not None:
            if message.get("more_body", False):
                return
            message = {"type": "http.response.body", "body": self._problem.response().body}
        await self._send(message)


def _refusal(start: Message) -> ProblemError | None:
    """Return the problem that stands for a refusal of the proxy; None for an answer of a replica."""
    headers = {name.lower(): value for name, value in start["headers"]}
    if start["status"] < 400 or headers.get(b"content-type", b"").startswith(MEDIA_TYPE.encode()):
        return None
    refusals = {
        404: ProblemError("unknown-route", 404, "No such route", "nothing is served here"),
        408: deadline_passed(None),
        429: overloaded(None),
        503: not_ready(),
    }
    return refusals.get(start["status"])
