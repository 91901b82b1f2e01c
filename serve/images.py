"""Images of the catalogue's items, decoded and encoded again as small PNGs; original files are never sent."""

import logging

from botocore.exceptions import BotoCoreError, ClientError

from digr.interests.images import is_transient, open_clients, read_bytes, small_png
from serve.problems import ProblemError

logger = logging.getLogger(__name__)


def item_image(item_id: str, uri: str | None, max_bytes: int, max_side: int) -> bytes:
    """Return an item's image as PNG.

    Args:
        uri: the address in the catalogue; nothing of a request is ever used as one.

    Raises:
        ProblemError: the item has no image, or it cannot be read, or not now.
    """
    if not uri:
        raise ProblemError("no-image", 404, "No image", f"item {item_id!r} has no image", fields=["item_id"])
    try:
        with open_clients([uri]) as clients:
            return small_png(read_bytes(uri, max_bytes, clients), max_side)
    except (OSError, ValueError, BotoCoreError, ClientError) as error:
        logger.warning("image of item %r: %s", item_id, error)
        if is_transient(error):
            detail = f"the image of item {item_id!r} is not given out now; try again later"
            raise ProblemError("image-not-reached", 503, "Image not reached", detail, fields=["item_id"]) from None
        detail = f"the image of item {item_id!r} cannot be read; see image_uri in the run's items"
        raise ProblemError("broken-image", 404, "Broken image", detail, fields=["item_id"]) from None
