"""Read images of bounded size from a local path, http(s), s3 or a `data:` address, and decode them before a model sees them.

An image that cannot be read gives a reason, not an exception. A row with a broken image is asked with text only. An image
that the server does not deliver now is tried again; if that fails too, its row waits for the next run.
"""

import base64
import errno
import io
import random
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import httpx
import numpy as np
from PIL import Image, ImageOps

from digr.artifacts import is_remote

MAX_PIXELS = 50_000_000
TRIES = 3
"""Tries to fetch an image before its row waits for the next run."""
_TIMEOUT_SECONDS = 20.0
_FIRST_PAUSE_SECONDS = 0.5
_TRANSIENT_STATUSES = {408, 425, 429}
"""HTTP statuses below 500 that are worth another try."""
_TRANSIENT_S3_CODES = {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "ExpiredToken"}
_TRANSIENT_DISK_ERRORS = {errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT}
# values of white in Pillow's modes with more than 8 bits; the first that is not below an image's largest value is taken
_WHITE = {"I": (255, 65535), "F": (1.0, 255, 65535)}


class Shown(NamedTuple):
    """An image as a `data:` address, or the reason why there is none."""

    url: str | None
    reason: str | None
    transient: bool = False
    """Whether a later try may succeed (a time-out, a busy server); such a row must not be asked without its image."""


class Clients(NamedTuple):
    """Clients that fetch many images; they keep connections open, and many threads may share them."""

    http: httpx.Client
    s3: Any
    """A boto3 client; making one is slow and must not happen in two threads at once."""


@contextmanager
def open_clients(uris: Iterable[str | None]) -> Iterator[Clients]:
    """Make the clients that the addresses need; the clients do not retry, `show_image` does."""
    s3 = None
    if any(address_of(uri).startswith("s3://") for uri in uris):
        import boto3
        from botocore.config import Config

        limits = {"connect_timeout": _TIMEOUT_SECONDS, "read_timeout": _TIMEOUT_SECONDS}
        s3 = boto3.client("s3", config=Config(retries={"total_max_attempts": 1}, **limits))
    with httpx.Client(timeout=_TIMEOUT_SECONDS, follow_redirects=True) as http:
        yield Clients(http, s3)


def address_of(uri: str | None) -> str:
    """Return an address without outer spaces, and with https if it begins with `//`, as shops write it."""
    address = (uri or "").strip()
    return f"https:{address}" if address.startswith("//") else address


def read_bytes(uri: str, max_bytes: int, clients: Clients) -> bytes:
    """Read a file of at most `max_bytes` from a local path, file://, http(s)://, s3:// or a `data:` address.

    Raises:
        ValueError: the address is of another kind, or the file is too large.
        OSError: the file cannot be read.
    """
    uri = address_of(uri)
    if uri.startswith("data:"):
        header, _, body = uri.partition(",")
        raw, in_base64 = unquote_to_bytes(body), header.rstrip().endswith(";base64")
        return _bounded(base64.b64decode(b"".join(raw.split()), validate=True) if in_base64 else raw, header, max_bytes)
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return _read_http(uri, max_bytes, clients.http)
    if parts.scheme == "s3":
        body = clients.s3.get_object(Bucket=parts.netloc, Key=parts.path.lstrip("/"))["Body"]
        return _bounded(body.read(max_bytes + 1), uri, max_bytes)
    if parts.scheme == "file" or not is_remote(uri):
        with Path(_local_path(uri)).open("rb") as file:
            return _bounded(file.read(max_bytes + 1), uri, max_bytes)
    raise ValueError(f"{uri}: expected a local path, http(s)://, s3:// or data:")


def _local_path(address: str) -> str:
    """Return the path of a file; only in a `file:` address, `%20` means a space."""
    return unquote(urlsplit(address).path) if address.startswith("file:") else address


def _read_http(uri: str, max_bytes: int, client: httpx.Client) -> bytes:
    content = bytearray()
    try:
        with client.stream("GET", uri) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                content += chunk
                _bounded(content, uri, max_bytes)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(f"{uri}: {error}") from error
    return bytes(content)


def _bounded(content: bytes | bytearray, uri: str, max_bytes: int) -> bytes:
    if len(content) > max_bytes:
        raise ValueError(f"{uri}: larger than {max_bytes} bytes")
    return bytes(content)


def is_transient(error: BaseException) -> bool:
    """Whether another try may succeed after an error of `read_bytes`: a server or shared disk is busy or unreachable.

    Files that are missing, forbidden, too large or no images, and unknown host names, are permanent errors.
    """
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, IncompleteReadError, NoCredentialsError

    cause = error.__cause__ or error
    if isinstance(cause, httpx.HTTPStatusError):
        return cause.response.status_code in _TRANSIENT_STATUSES or cause.response.status_code >= 500
    if isinstance(cause, httpx.TransportError):
        return not isinstance(cause, httpx.UnsupportedProtocol) and not _is_unknown_host(cause)
    if isinstance(cause, ClientError):
        status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return (
            status in _TRANSIENT_STATUSES or status >= 500 or cause.response.get("Error", {}).get("Code") in _TRANSIENT_S3_CODES
        )
    if isinstance(cause, ConnectionError | HTTPClientError | IncompleteReadError | NoCredentialsError):
        return True
    return isinstance(cause, OSError) and cause.errno in _TRANSIENT_DISK_ERRORS


def _is_unknown_host(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None and error.errno != socket.EAI_AGAIN


def small_png(content: bytes, max_side: int) -> bytes:
    """Decode an image completely, scale it down to at most `max_side` pixels per side, and return it as RGB PNG.

    Transparent areas become white, EXIF rotation is applied, 16-bit values are scaled to 8 bits, and an animation gives its
    first frame. Metadata, such as the place of a photo, is removed.

    Raises:
        ValueError: the content is no image, is broken, or has more than 50 million pixels.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")
            small = _in_8_bits(image)
            small.thumbnail((max_side, max_side))
            small = ImageOps.exif_transpose(small)
    # Pillow's decoders report a broken file in all these ways
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image: {error}") from error
    if small.mode == "RGBA":
        white = Image.new("RGBA", small.size, "white")
        small = Image.alpha_composite(white, small).convert("RGB")
    small.info.clear()
    sink = io.BytesIO()
    small.save(sink, "PNG")
    return sink.getvalue()


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Return an image as RGB, or as RGBA if it has transparency."""
    if image.mode.startswith(("I", "F")):  # Pillow would clip values above 255 to white
        values = np.nan_to_num(np.asarray(image, np.float64))
        highest = float(values.max())
        tops = _WHITE.get(image.mode, (65535,))
        top = next((top for top in tops if highest <= top), highest)
        grey = Image.fromarray(np.clip(values * (255 / top), 0, 255).round().astype(np.uint8))
        grey.info["exif"] = image.getexif().tobytes()
        return grey.convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def show_image(uri: str | None, max_bytes: int, max_side: int, clients: Clients) -> Shown:
    """Return one image for a prompt, or why there is none; transient errors are tried `TRIES` times, with growing pauses."""
    from botocore.exceptions import BotoCoreError, ClientError

    if uri is None or not uri.strip():
        return Shown(None, "no image")
    for left in reversed(range(TRIES)):
        try:
            content = small_png(read_bytes(uri, max_bytes, clients), max_side)
            return Shown(f"data:image/png;base64,{base64.b64encode(content).decode()}", None)
        except (OSError, ValueError, BotoCoreError, ClientError) as error:
            if not is_transient(error):
                return Shown(None, f"broken image: {error}"[:200])
            if not left:
                return Shown(None, f"image not fetched in {TRIES} tries: {error}"[:200], transient=True)
            # growing pauses with random jitter, so that threads do not retry at the same moment
            time.sleep(_FIRST_PAUSE_SECONDS * 3 ** (TRIES - 1 - left) * random.uniform(1, 1.5))
    raise AssertionError("the last try returns")


def show_images(uris: Sequence[str | None], max_bytes: int, max_side: int, threads: int = 16) -> list[Shown]:
    """Fetch and decode many images in parallel; return them in order."""
    with open_clients(uris) as clients, ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda uri: show_image(uri, max_bytes, max_side, clients), uris))


def count_images(uris: Sequence[str | None], threads: int = 16) -> tuple[int, int]:
    """Count the local files that begin like an image, and the addresses that are not tried because they are remote.

    Only headers are read: a file that is cut off later is found only when it is shown.
    """

    def opens(uri: str) -> bool:
        try:
            with Image.open(io.BytesIO(read_bytes(uri, len(uri), clients)) if uri.startswith("data:") else _local_path(uri)):
                return True
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return False

    known = [address for address in map(address_of, uris) if address]
    here = [address for address in known if address.startswith(("data:", "file:")) or "://" not in address]
    with open_clients([]) as clients, ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(opens, here)), len(known) - len(here)
