"""Fetch and decode many images before a model sees them.

An image that cannot be read gives a reason, not an exception. A row with a broken image is asked with text only. An image
that the server does not deliver now is tried again; if that fails too, its row waits for the next run.
"""

import base64
import io
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image
from pyarrow.fs import LocalFileSystem

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.images import ImagesConfig
from digr.files import filesystem_of
from digr.images.addresses import RefusedAddress, address_of, check_address, local_path, scheme_of
from digr.images.decoding import FORMATS, small_png
from digr.images.fetching import ImageFetcher, is_transient, open_file

TRIES = 3
"""Tries to fetch an image before its row waits for the next run."""
FOLDERS = "image_folders"
"""Fact of `items`: the local folders of its data, below which images may be read."""
_FIRST_PAUSE_SECONDS = 0.5
_REASON_CHARS = 300


class ImageRules(NamedTuple):
    """What may be read for a run, and how large it may be."""

    allowed: ImagesConfig
    folders: tuple[str, ...]
    """Folders of the run and of its data, below which files are read."""
    max_bytes: int
    max_side: int
    """Longest side of a shown image, pixels."""


class Shown(NamedTuple):
    """An image as a `data:` address, or the reason why there is none."""

    url: str | None
    reason: str | None
    transient: bool = False
    """Whether a later try may succeed (a time-out, a busy server); such a row must not be asked without its image."""


class ImageCounts(NamedTuple):
    """What the addresses of a catalogue's images are."""

    total: int
    """Addresses."""
    opened: int
    """Local files and inline data that begin like an image."""
    remote: int
    """Addresses that are not tried because they are remote."""
    refused: int
    """Addresses that the rules do not let be read."""
    first_refusal: str
    """Why the first of these is refused; empty if none is."""

    def plus(self, others: "ImageCounts") -> "ImageCounts":
        """Return the sum of both."""
        return ImageCounts(
            self.total + others.total,
            self.opened + others.opened,
            self.remote + others.remote,
            self.refused + others.refused,
            self.first_refusal or others.first_refusal,
        )

    def notes(self) -> list[str]:
        """Say how many images do not open."""
        notes = []
        if broken := self.total - self.opened - self.remote - self.refused:
            notes.append(f"{broken} of {self.total} images do not open; their items have their text only")
        if self.refused:
            notes.append(f"{self.refused} of {self.total} images are not read; the first: {self.first_refusal}")
        return notes

    def facts(self) -> dict[str, int]:
        """Return the counts for a manifest; remote and refused ones only where there are some."""
        some = {"num_remote_images": self.remote, "num_refused_images": self.refused}
        return {"num_image_uris": self.total, "num_images": self.opened} | {name: n for name, n in some.items() if n}


NO_IMAGES = ImageCounts(0, 0, 0, 0, "")


def image_rules(config: Config, store: Store) -> ImageRules:
    """Return what may be read for a run whose items exist."""
    limits = config.interests
    return ImageRules(config.images, run_folders(store), limits.max_image_bytes, limits.max_image_side)


def run_folders(store: Store) -> tuple[str, ...]:
    """Return the local folders below which a run's images may lie: its own, and those of its data."""
    return (*own_folders(store), *artifacts.require(store, "items").facts.get(FOLDERS, ()))


def own_folders(store: Store) -> tuple[str, ...]:
    """Return the run's own folder, if it is local."""
    filesystem, path = filesystem_of(store.root)
    return (path,) if isinstance(filesystem, LocalFileSystem) else ()


def show_image(uri: str | None, rules: ImageRules, fetcher: ImageFetcher) -> Shown:
    """Return one image for a prompt, or why there is none; transient errors are tried `TRIES` times, with growing pauses."""
    if uri is None or not uri.strip():
        return Shown(None, "no image")
    for left in reversed(range(TRIES)):
        try:
            content = fetcher.read(uri, rules.max_bytes, rules.folders)
            picture = small_png(content, rules.max_side, rules.allowed.max_pixels)
            return Shown(f"data:image/png;base64,{base64.b64encode(picture).decode()}", None)
        except (OSError, ValueError) as error:
            if not is_transient(error):
                return Shown(None, f"broken image: {error}"[:_REASON_CHARS])
            if not left:
                return Shown(None, f"image not fetched in {TRIES} tries: {error}"[:_REASON_CHARS], transient=True)
            # growing pauses with random jitter, so that threads do not retry at the same moment
            time.sleep(_FIRST_PAUSE_SECONDS * 3 ** (TRIES - 1 - left) * random.uniform(1, 1.5))
    raise AssertionError("the last try returns")


def show_images(
    uris: Sequence[str | None],
    rules: ImageRules,
    threads: int = 16,
    make_fetcher: Callable[[ImagesConfig], ImageFetcher] = ImageFetcher,
) -> list[Shown]:
    """Fetch and decode many images in parallel; return them in order."""
    with make_fetcher(rules.allowed) as fetcher, ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda uri: show_image(uri, rules, fetcher), uris))


def count_images(
    uris: Sequence[str | None], allowed: ImagesConfig, folders: Sequence[str] = (), threads: int = 16
) -> ImageCounts:
    """Count what can be told of images without asking another machine.

    Only headers are read: a file that is cut off later is found only when it is shown.

    Args:
        folders: folders below which files are read, besides those of the config.
    """

    def kind_of(uri: str) -> str:
        """Return "opened", "broken", "remote", or why the address is refused."""
        try:
            check_address(uri, allowed, folders)
            scheme = scheme_of(uri, allowed)
            if scheme == "file":
                with open_file(local_path(uri, allowed, folders)) as file, Image.open(file, formats=FORMATS):
                    return "opened"
            return "remote" if scheme != "data" else _kind_of_inline(uri, fetcher)
        except RefusedAddress as error:
            return str(error)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return "broken"

    known = [address for address in map(address_of, uris) if address]
    with ImageFetcher(allowed) as fetcher, ThreadPoolExecutor(threads) as pool:
        kinds = list(pool.map(kind_of, known))
    refusals = [kind for kind in kinds if kind not in ("opened", "broken", "remote")]
    total = len(uris) - list(uris).count(None)
    return ImageCounts(total, kinds.count("opened"), kinds.count("remote"), len(refusals), next(iter(refusals), ""))


def _kind_of_inline(uri: str, fetcher: ImageFetcher) -> str:
    with Image.open(io.BytesIO(fetcher.read(uri, len(uri))), formats=FORMATS):
        return "opened"
