"""Headers of requests, read once and strictly."""

import ipaddress
import re
from urllib.parse import urlsplit

from starlette.types import Scope

from serve.contract.problems import ProblemError

_SINGLE = frozenset({b"host", b"origin", b"referer", b"authorization", b"content-length", b"content-type"})
_HOST = re.compile(r"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(.+)")
_LENGTH = re.compile(r"[0-9]{1,18}")
_FORWARDING = frozenset(
    {"forwarded", "via", "x-real-ip", "true-client-ip", "client-ip", "x-client-ip", "x-cluster-client-ip", "cdn-loop"}
)
_FORWARDING_PREFIXES = ("x-forwarded", "x-original-", "x-envoy-", "x-amzn-", "x-azure-", "x-appengine-", "cf-", "fastly-")


def read_headers(scope: Scope) -> dict[str, str]:
    """Return a request's headers by lower-case name, after those that decide what happens were checked.

    Raises:
        ProblemError: one of them comes twice or is not what it must be, or the query has bytes beyond ASCII.
    """
    headers = dict[str, str]()
    for name, value in scope["headers"]:
        if name in _SINGLE and name.decode() in headers:
            raise malformed(name.decode(), "it comes more than once")
        headers[name.decode("latin-1")] = value.decode("latin-1").strip()
    if host := headers.get("host"):
        _check_host("host", host)
    if (origin := headers.get("origin")) and origin != "null":
        found = _ORIGIN.fullmatch(origin)
        _check_host("origin", found[1] if found else "")
    for name in ("authorization", "content-type"):
        if not headers.get(name, "").isascii():
            raise malformed(name, "it has bytes beyond ASCII")
    if "content-length" in headers and not _LENGTH.fullmatch(headers["content-length"]):
        raise malformed("content-length", "it is no number of bytes")
    if not scope.get("query_string", b"").isascii():
        raise ProblemError("malformed-request", 400, "Malformed request", "the query has bytes beyond ASCII; percent-encode them")
    return headers


def _check_host(name: str, host: str) -> None:
    found = _HOST.fullmatch(host)
    if found is None or (found[2] and int(found[2][1:]) > 65535):
        raise malformed(name, "it names no host")
    if found[1].startswith("["):
        try:
            ipaddress.IPv6Address(found[1][1:-1])
        except ValueError:
            raise malformed(name, "it names no host") from None


def malformed(name: str, cause: str) -> ProblemError:
    """Say which header cannot be read."""
    detail = f"the header {name} cannot be read: {cause}; mend it or leave it out"
    return ProblemError("malformed-header", 400, "Malformed header", detail)


def host_of(value: str) -> str | None:
    """Return the host in a Host header or an address such as an origin; None if there is none."""
    try:
        return urlsplit(value if "://" in value else f"//{value}").hostname
    except ValueError:
        return None


def forwarding_headers(headers: dict[str, str]) -> list[str]:
    """Return the names of headers by which a proxy says for whom it asks."""
    return sorted(name for name in headers if name in _FORWARDING or name.startswith(_FORWARDING_PREFIXES))
