"""Read images from files, http(s), S3 and `data:` addresses within bounds of place, time and size.

A host is looked up once for each connection, its addresses are checked, and the connection goes to one that passed: a name that
changes between check and use gains nothing. Redirects are followed here, and each is checked like the first address. Proxies
of the environment are not used, because they would look up names on their own.
"""

import base64
import contextlib
import errno
import ipaddress
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import unquote_to_bytes

import httpcore
import httpx

from digr.config.images import ImagesConfig
from digr.images.addresses import RefusedAddress, address_of, bucket_and_key, check_ip, http_url, local_path, scheme_of, shorten
from digr.s3 import s3_client

MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSIENT_STATUSES = {408, 425, 429}
"""HTTP statuses below 500 that are worth another try."""
_TRANSIENT_S3_CODES = {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "ExpiredToken"}
_TRANSIENT_DISK_ERRORS = {errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT}
_CHUNK_BYTES = 1 << 16
_LOOKUP_THREADS = 8
_HEADERS: dict[str | bytes, str | bytes] = {
    "Accept": "image/png, image/jpeg, image/webp, image/*;q=0.8",
    "Accept-Encoding": "identity",
    "User-Agent": "digr",
}

Resolve = Callable[[str, int], Sequence[str]]


class HttpStatus(OSError):
    """A server answered with an error."""

    def __init__(self, where: str, status: int) -> None:
        super().__init__(f"{where}: HTTP status {status}")
        self.status = status


def look_up(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Deadline(threading.local):
    """When the fetch that this thread works on must be over."""

    end = float("inf")


class _Clock:
    """Tells each thread how many seconds its fetch has left."""

    def __init__(self, seconds: float, now: Callable[[], float]) -> None:
        self.seconds, self._now, self._deadline = seconds, now, _Deadline()

    @contextmanager
    def running(self) -> Iterator[None]:
        self._deadline.end = self._now() + self.seconds
        try:
            yield
        finally:
            self._deadline.end = float("inf")

    def left(self) -> float:
        """Return the seconds left.

        Raises:
            TimeoutError: none.
        """
        left = self._deadline.end - self._now()
        if left <= 0:
            raise TimeoutError(f"not read within {self.seconds:g} s, see images.max_seconds")
        return left


class _TimedStream(httpcore.NetworkStream):
    """A connection whose every step ends when its fetch has no time left."""

    def __init__(self, inner: httpcore.NetworkStream, clock: _Clock) -> None:
        self._inner, self._clock = inner, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._clock.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._clock.left())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._inner.start_tls(ssl_context, server_hostname, self._clock.left()), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _CheckedNetwork(httpcore.NetworkBackend):
    """Connects only to addresses that the rules allow."""

    def __init__(self, allowed: ImagesConfig, clock: _Clock, resolve: Resolve) -> None:
        self._allowed, self._clock, self._resolve = allowed, clock, resolve
        self._lookups = ThreadPoolExecutor(_LOOKUP_THREADS, "image-host")  # a look-up has no time-out of its own
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = self._addresses(host, port)
        for number, address in enumerate(addresses):
            share = self._clock.left() / (len(addresses) - number)  # one that does not answer leaves time for the next
            try:
                return _TimedStream(self._sockets.connect_tcp(address, port, share, None, socket_options), self._clock)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(addresses) - 1:
                    raise
        raise AssertionError("there is at least one address")

    def _addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host that may be asked.

        Raises:
            RefusedAddress: there is none.
        """
        found = self._lookups.submit(self._resolve, host, port).result(self._clock.left())
        passed, refused = list[str](), None
        for address in found:
            try:
                check_ip(ipaddress.ip_address(address), host, self._allowed)
                passed.append(address)
            except RefusedAddress as error:
                refused = error
        if not passed:
            raise refused or OSError(f"host {host} has no address")
        return passed

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)


class ImageFetcher:
    """Reads images within the rules of `[images]`; it keeps connections open, and many threads may share it."""

    def __init__(self, allowed: ImagesConfig, *, now: Callable[[], float] = time.monotonic, resolve: Resolve = look_up) -> None:
        """Make a fetcher.

        Args:
            allowed: the rules.
            now: a clock, seconds.
            resolve: returns the IP addresses of a host and port.
        """
        self.allowed = allowed
        self._clock = _Clock(allowed.max_seconds, now)
        self._network = _CheckedNetwork(allowed, self._clock, resolve)
        self._http = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=64,
            max_keepalive_connections=16,
            network_backend=self._network,
        )

    def __enter__(self) -> Self:
        """Return the fetcher, whose connections the end of the block closes."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._network.close()

    def read(self, uri: str, max_bytes: int, folders: Sequence[str] = ()) -> bytes:
        """Read a file of at most `max_bytes` from a local path, file://, http(s)://, s3:// or a `data:` address.

        Args:
            folders: folders below which files are read, besides those of the config.

        Raises:
            RefusedAddress: the rules do not allow the address.
            ValueError: the file is too large, or inline data are broken.
            OSError: the file cannot be read, or not in time; see `is_transient`.
        """
        address = address_of(uri)
        scheme = scheme_of(address, self.allowed)
        with self._clock.running():
            if scheme == "data":
                return _read_inline(address, max_bytes)
            if scheme == "file":
                with open_file(local_path(address, self.allowed, folders)) as file:
                    return _bounded(file.read(max_bytes + 1), address, max_bytes)
            if scheme == "s3":
                return self._read_s3(address, max_bytes)
            return self._read_http(address, max_bytes)

    def _read_s3(self, address: str, max_bytes: int) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, key = bucket_and_key(address, self.allowed)
        try:
            with contextlib.closing(s3_client().get_object(Bucket=bucket, Key=key)["Body"]) as body:
                return self._collect(body.iter_chunks(_CHUNK_BYTES), address, max_bytes)
        except (BotoCoreError, ClientError) as error:
            raise OSError(f"{shorten(address)}: {error}") from error

    def _read_http(self, address: str, max_bytes: int) -> bytes:
        where = address
        for _ in range(MAX_REDIRECTS + 1):
            url = http_url(where, self.allowed)
            try:
                with self._http.stream(
                    "GET",
                    httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers=_HEADERS | {"Host": url.netloc},
                    extensions={"timeout": {"pool": self._clock.left()}},
                ) as response:
                    if response.status not in _REDIRECTS:
                        return self._answer(response, where, max_bytes)
                    where = _target_of(response, url)
            except (httpcore.TimeoutException, TimeoutError) as error:
                raise TimeoutError(
                    f"{shorten(where)}: not read within {self._clock.seconds:g} s, see images.max_seconds"
                ) from error
            except (httpcore.NetworkError, httpcore.ProtocolError, socket.gaierror) as error:
                raise OSError(f"{shorten(where)}: {error}") from error
        raise ValueError(f"{shorten(address)}: more than {MAX_REDIRECTS} redirects")

    def _answer(self, response: httpcore.Response, where: str, max_bytes: int) -> bytes:
        if not 200 <= response.status < 300:
            raise HttpStatus(shorten(where), response.status)
        declared = _header(response, b"content-length")
        if declared.isdigit() and int(declared[:20]) > max_bytes:
            raise _too_large(where, max_bytes)
        return self._collect(response.iter_stream(), where, max_bytes)

    def _collect(self, chunks: Iterable[bytes], address: str, max_bytes: int) -> bytes:
        content = bytearray()
        for chunk in chunks:
            self._clock.left()
            if len(content) + len(chunk) > max_bytes:
                raise _too_large(address, max_bytes)
            content += chunk
        return bytes(content)


def _target_of(response: httpcore.Response, url: httpx.URL) -> str:
    """Return where a redirect leads."""
    location = _header(response, b"location").decode("latin-1")
    try:
        return str(url.join(location))
    except (httpx.InvalidURL, ValueError) as error:
        raise RefusedAddress(f"{shorten(str(url))}: redirects to {shorten(location)}: {error}") from None


def _header(response: httpcore.Response, name: bytes) -> bytes:
    return next((value for header, value in response.headers if header.lower() == name), b"")


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file whose links have been followed; pipes and devices are refused without waiting for them."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{shorten(str(path))}: not a file")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def _read_inline(address: str, max_bytes: int) -> bytes:
    """Decode a `data:` address; what is far too long is not decoded at all."""
    header, _, body = address.partition(",")
    if len(address) > 4 * max_bytes + 1000:
        raise _too_large(address, max_bytes)
    raw, in_base64 = unquote_to_bytes(body), header.rstrip().lower().endswith(";base64")
    return _bounded(base64.b64decode(b"".join(raw.split()), validate=True) if in_base64 else raw, address, max_bytes)


def _bounded(content: bytes, address: str, max_bytes: int) -> bytes:
    if len(content) > max_bytes:
        raise _too_large(address, max_bytes)
    return content


def _too_large(address: str, max_bytes: int) -> ValueError:
    return ValueError(f"{shorten(address)}: larger than {max_bytes} bytes")


def is_transient(error: BaseException) -> bool:
    """Whether another try may succeed after an error of `ImageFetcher.read`: a server or shared disk is busy or unreachable.

    Permanent are errors of files that are missing, forbidden, refused, too large or no images, unknown host names and wrong
    certificates.
    """
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, IncompleteReadError, NoCredentialsError

    cause = error.__cause__ or error
    if isinstance(cause, HttpStatus):
        return cause.status in _TRANSIENT_STATUSES or cause.status >= 500
    if isinstance(cause, socket.gaierror):
        return cause.errno == socket.EAI_AGAIN
    if any(isinstance(inner, ssl.SSLCertVerificationError) for inner in cause.args):  # httpcore's errors hold those of sockets
        return False
    if isinstance(cause, TimeoutError | httpcore.TimeoutException | httpcore.NetworkError | httpcore.RemoteProtocolError):
        return True
    if isinstance(cause, ClientError):
        status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = cause.response.get("Error", {}).get("Code")
        return status in _TRANSIENT_STATUSES or status >= 500 or code in _TRANSIENT_S3_CODES
    if isinstance(cause, ConnectionError | HTTPClientError | IncompleteReadError | NoCredentialsError):
        return True
    return isinstance(cause, OSError) and cause.errno in _TRANSIENT_DISK_ERRORS
