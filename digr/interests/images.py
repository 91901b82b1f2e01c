"""Read the images that prompts show: from a local path, http(s) or s3, bounded in size, decoded before any engine sees them.

A broken image is a reason, not an exception: its row is asked with text only.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
from PIL import Image

from digr.artifacts import is_remote

MAX_PIXELS = 50_000_000
_TIMEOUT_SECONDS = 20.0


class Shown(NamedTuple):
    """An image as a `data:` address, or the reason why there is none."""

    url: str | None
    reason: str | None


class Clients(NamedTuple):
    """What fetches many images: connections are kept, and both may be used by many threads at once."""

    http: httpx.Client
    s3: Any
    """A boto3 client; making one is slow and must not happen in two threads at once."""


@contextmanager
def open_clients(uris: Iterable[str | None]) -> Iterator[Clients]:
    """Make the clients that some addresses need."""
    import boto3

    s3 = boto3.client("s3") if any((uri or "").startswith("s3://") for uri in uris) else None
    with httpx.Client(timeout=_TIMEOUT_SECONDS, follow_redirects=True) as http:
        yield Clients(http, s3)


def read_bytes(uri: str, max_bytes: int, clients: Clients) -> bytes:
    """Read a file of at most `max_bytes` from a local path, file://, http(s):// or s3://.

    Raises:
        ValueError: the address is of another kind, or the file is too large.
        OSError: it cannot be read.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return _read_http(uri, max_bytes, clients.http)
    if parts.scheme == "s3":
        body = clients.s3.get_object(Bucket=parts.netloc, Key=parts.path.lstrip("/"))["Body"]
        return _bounded(body.read(max_bytes + 1), uri, max_bytes)
    if parts.scheme == "file" or not is_remote(uri):
        with Path(parts.path if parts.scheme == "file" else uri).open("rb") as file:
            return _bounded(file.read(max_bytes + 1), uri, max_bytes)
    raise ValueError(f"{uri}: expected a local path, http(s):// or s3://")


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


def small_png(content: bytes, max_side: int) -> bytes:
    """Decode an image whole, scale it down to at most `max_side` pixels a side, and return it as RGB PNG.

    Raises:
        ValueError: it is no image, is broken, or has more than 50 million pixels.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")
            small = image.convert("RGB")
    # Pillow's decoders report a broken file in all these ways
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image: {error}") from error
    small.thumbnail((max_side, max_side))
    sink = io.BytesIO()
    small.save(sink, "PNG")
    return sink.getvalue()


def show_image(uri: str | None, max_bytes: int, max_side: int, clients: Clients) -> Shown:
    """Return one image for a prompt, or why there is none."""
    from botocore.exceptions import BotoCoreError, ClientError

    if not uri:
        return Shown(None, "no image")
    try:
        content = small_png(read_bytes(uri, max_bytes, clients), max_side)
    except (OSError, ValueError, BotoCoreError, ClientError) as error:
        return Shown(None, f"broken image: {error}"[:200])
    return Shown(f"data:image/png;base64,{base64.b64encode(content).decode()}", None)


def show_images(uris: Sequence[str | None], max_bytes: int, max_side: int, threads: int = 16) -> list[Shown]:
    """Fetch and decode many images at once, in their order."""
    with open_clients(uris) as clients, ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda uri: show_image(uri, max_bytes, max_side, clients), uris))
