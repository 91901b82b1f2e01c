"""Images of the catalogue's items, decoded and encoded again as small PNGs; original files are never sent.

They have threads of their own, so images that come slowly hold up other images only: neither lists, nor searches, nor the task
that follows other replicas. What was read is kept in memory for a while, and so is what could not be read.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from cachetools import TTLCache

from digr.config.images import ImagesConfig
from digr.images.decoding import small_png
from digr.images.fetching import ImageFetcher, is_transient
from serve.contract.problems import ProblemError, deadline_passed

logger = logging.getLogger(__name__)

THREADS = 4
"""Images that a replica reads at the same time."""
MAX_WAITING = 32
"""Images that are read or wait for it in a replica; one more gets a problem (503)."""
CACHE_BYTES = 64 << 20
FRESH_SECONDS = 86_400
"""How long an image is kept, here and by browsers."""
FAILED_SECONDS, AWAY_SECONDS = 60.0, 5.0
"""How long an image that cannot be read, or whose server is away, is not tried again."""
MAX_FAILED = 10_000

_Key = tuple[str, tuple[str, ...]]


class SmallImage(NamedTuple):
    """An image as it is sent."""

    content: bytes
    """PNG."""
    etag: str
    """Entity tag of the content, with its quotes."""


class ImageLimits(NamedTuple):
    """How images are read and sent."""

    max_bytes: int
    """Largest file."""
    max_side: int
    """Longest side of what is sent, pixels."""
    seconds: float
    """Longest wait of a request; the reading goes on, so that a later request has the image."""


class ItemImages:
    """Reads and keeps the images of items; all methods but `_read` run on the event loop."""

    def __init__(
        self,
        allowed: ImagesConfig,
        limits: ImageLimits,
        *,
        now: Callable[[], float] = time.monotonic,
        make_fetcher: Callable[[ImagesConfig], ImageFetcher] = ImageFetcher,
    ) -> None:
        """Prepare the threads, which start with the first image.

        Args:
            now: a clock, seconds.
            make_fetcher: returns what reads addresses within the rules.
        """
        self.limits = limits
        self._fetcher = make_fetcher(allowed)
        self._threads = ThreadPoolExecutor(THREADS, "item-image")
        self._running: dict[_Key, asyncio.Task[SmallImage]] = {}
        self._kept: TTLCache[_Key, SmallImage] = TTLCache(CACHE_BYTES, FRESH_SECONDS, now, lambda image: len(image.content))
        self._broken: TTLCache[_Key, bool] = TTLCache(MAX_FAILED, FAILED_SECONDS, now)
        self._away: TTLCache[_Key, bool] = TTLCache(MAX_FAILED, AWAY_SECONDS, now)

    async def get(self, item_id: str, uri: str | None, folders: Sequence[str] = ()) -> SmallImage:
        """Return an item's image as PNG.

        Args:
            uri: the address in the catalogue; nothing of a request is ever used as one.
            folders: folders below which the item's run may read files.

        Raises:
            ProblemError: the item has no image, or it cannot be read, or not now.
        """
        if not uri:
            raise ProblemError("no-image", 404, "No image", f"item {item_id!r} has no image", fields=["item_id"])
        key = (uri, tuple(folders))
        if (kept := self._kept.get(key)) is not None:
            return kept
        if key in self._broken:
            raise _broken_image(item_id)
        if key in self._away:
            raise _image_not_reached(item_id)
        if (reading := self._running.get(key)) is None:
            if len(self._running) >= MAX_WAITING:
                raise _too_many_images()
            reading = self._running[key] = asyncio.create_task(self._keep(key))
            reading.add_done_callback(_note_failure)
        await asyncio.wait([reading], timeout=self.limits.seconds)
        if not reading.done():
            raise deadline_passed(self.limits.seconds)
        try:
            return reading.result()
        except (OSError, ValueError) as error:
            raise (_image_not_reached if is_transient(error) else _broken_image)(item_id) from None

    async def _keep(self, key: _Key) -> SmallImage:
        """Read an image in a thread and keep it, or keep that it cannot be read."""
        try:
            content = await asyncio.get_running_loop().run_in_executor(self._threads, self._read, *key)
        except (OSError, ValueError) as error:
            (self._away if is_transient(error) else self._broken)[key] = True
            raise
        finally:
            del self._running[key]
        image = SmallImage(content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
        if len(content) <= CACHE_BYTES:
            self._kept[key] = image
        return image

    def _read(self, uri: str, folders: Sequence[str]) -> bytes:
        content = self._fetcher.read(uri, self.limits.max_bytes, folders)
        return small_png(content, self.limits.max_side, self._fetcher.allowed.max_pixels)


def _note_failure(reading: asyncio.Task[SmallImage]) -> None:
    """Log why an image was not read, also if nobody waits for it any more."""
    if not reading.cancelled() and (error := reading.exception()) is not None:
        logger.warning("image not read: %s", error)


def _broken_image(item_id: str) -> ProblemError:
    detail = f"the image of item {item_id!r} cannot be read; see image_uri in the run's items"
    return ProblemError("broken-image", 404, "Broken image", detail, fields=["item_id"])


def _image_not_reached(item_id: str) -> ProblemError:
    detail = f"the image of item {item_id!r} is not given out now; try again later"
    headers = {"Retry-After": f"{AWAY_SECONDS:.0f}"}
    return ProblemError("image-not-reached", 503, "Image not reached", detail, fields=["item_id"], headers=headers)


def _too_many_images() -> ProblemError:
    detail = f"{MAX_WAITING} images are being read already; try again after the time of Retry-After"
    return ProblemError("images-busy", 503, "Too many images", detail, headers={"Retry-After": "1"})
