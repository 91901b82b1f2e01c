"""Who asks: the keys of a deployment with what they have left of their rates, or this machine itself where there are none."""

import ipaddress
import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

from starlette.types import Scope

from serve.contract.problems import forbidden, rate_limited, unauthorised
from serve.keys import KeyRecord, Role, TokenBucket, find_key, parse_keys
from serve.middleware.headers import forwarding_headers, host_of

logger = logging.getLogger(__name__)

NO_KEYS = (
    "this deployment has no keys, so it answers only programs and browsers of this machine that ask it directly at 127.0.0.1; "
    "no proxy may stand before it; for anyone else set keys_file in serve/config.yaml"
)
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class Caller:
    """Whoever sent the request that is answered."""

    def __init__(self, name: str = "", bucket: TokenBucket | None = None) -> None:
        self.name, self._bucket = name, bucket

    def charge(self, num_lists: int) -> None:
        """Take a request for what it costs: as much as one request for each of its lists; one has been paid at the gate.

        Raises:
            ProblemError: that is more than the key has left.
        """
        if self._bucket is not None and (wait := self._bucket.take(num_lists - 1, taken=1)):
            raise rate_limited(self.name, wait, num_lists)


_CALLER: ContextVar[Caller] = ContextVar("caller")
"""Who asks in the task that answers; the gate sets it."""
_ANYBODY = Caller()
set_caller = _CALLER.set


def current_caller() -> Caller:
    """Return who asks; outside requests, nobody in particular."""
    return _CALLER.get(_ANYBODY)


class KeyRing:
    """The keys of a file, which is read again and again; without a file only this machine is allowed.

    The rate of a key is that of the whole deployment: each replica allows its part of it.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = Path(path) if path else None, clock
        self._content: bytes | None = None
        self.num_replicas = 1
        """Replicas that share the rates."""
        self.records: list[KeyRecord] = []
        self._buckets: dict[str, TokenBucket] = {}
        self.refresh()
        if self._path is None:
            logger.warning(NO_KEYS)

    def refresh(self) -> None:
        """Read the file and use what it says.

        Raises:
            ValueError: it is missing or not one; the keys before stay.
        """
        self.use(self.read_file())

    def read_file(self) -> bytes | None:
        """Return what the file holds; None if there is none. It changes nothing, so it may run in any thread."""
        return self._path.read_bytes() if self._path and self._path.exists() else None

    def use(self, content: bytes | None) -> None:
        """Let in the keys of a file's content; those that stay keep what is left of their rates.

        Raises:
            ValueError: there is no file, or it is no key file; the keys before stay.
        """
        if self._path and (content is None or content != self._content):
            self.records, self._content = parse_keys(self._path, content), content
            self._set_rates()

    def share_rates(self, num_replicas: int) -> None:
        """Allow a part of each rate, for this many replicas that each get about as many requests."""
        if num_replicas != self.num_replicas:
            self.num_replicas = num_replicas
            self._set_rates()

    def _set_rates(self) -> None:
        buckets = dict[str, TokenBucket]()
        for key in self.records:
            rate, burst = key.requests_per_second / self.num_replicas, max(1.0, key.burst / self.num_replicas)
            buckets[key.name] = self._buckets.get(key.name) or TokenBucket(rate, burst, self._clock)
            buckets[key.name].change(rate, burst)
        self._buckets = buckets

    def check(self, scope: Scope, headers: dict[str, str], needed: Role) -> Caller:
        """Let a request in whose route needs a role; return who asks.

        Raises:
            ProblemError: it has no valid key, or one of too low a role, or the key has used up its rate.
        """
        if self._path is None:
            _check_local(scope, headers)
            return Caller()
        kind, _, key = headers.get("authorization", "").partition(" ")
        record = find_key(self.records, key.strip()) if kind.lower() == "bearer" else None
        if record is None:
            raise unauthorised("send `Authorization: Bearer <key>` with a key of this deployment")
        if needed == "admin" and record.role != "admin":
            raise forbidden(record.name, record.role)
        bucket = self._buckets[record.name]
        if wait := bucket.take():
            raise rate_limited(record.name, wait)
        return Caller(record.name, bucket)


def _check_local(scope: Scope, headers: dict[str, str]) -> None:
    """Refuse other machines, pages of other sites in this machine's browser, and proxies; used without keys.

    A proxy on this machine has a local address itself. What shows it are the headers that it adds, and HTTP/1.0, which nginx
    speaks to what it stands before unless it is told otherwise.
    """
    if through := forwarding_headers(headers):
        raise unauthorised(f"{NO_KEYS}; this request came through a proxy (it has the header {through[0]})")
    if scope.get("http_version") == "1.0":
        raise unauthorised(f"{NO_KEYS}; this request seems to come through a proxy (it is HTTP/1.0)")
    ends = [scope.get("client"), scope.get("server")]
    names = [host_of(headers.get("host", "")), *(host_of(headers[name]) for name in ("origin", "referer") if name in headers)]
    if not all(end and _is_loopback(end[0]) for end in ends) or not _LOCAL_HOSTS.issuperset(names):
        raise unauthorised(NO_KEYS)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a socket's path
        return False
