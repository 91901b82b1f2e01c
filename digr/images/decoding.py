"""Decode an image of any usual format into a small RGB PNG, in bounded memory.

An image is decoded once and then reduced strip by strip, so only the decoded pixels themselves are ever held at full size.
"""

import contextlib
import io
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from digr.config.images import ImagesConfig

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that catalogues use; Pillow has many more decoders, which foreign bytes do not reach."""
MAX_PIXELS: int = ImagesConfig.model_fields["max_pixels"].default
MAX_SCANS = 100
"""Most passes over a JPEG; a progressive one usually has ten. Each costs as much as the pixels need, and only ten bytes."""
_SCAN = b"\xff\xda"
_LARGE_PIXELS = 4_000_000
_ONE_LARGE_IMAGE = threading.Semaphore()
"""Of images above 4 million pixels, a process decodes one at a time: threads share its memory."""
_STRIP_PIXELS = 1 << 19
_ORIENTATION, _TILE_WIDTH, _TILE_LENGTH = 0x0112, 322, 323
"""Tags of EXIF and TIFF."""
# values of white in Pillow's modes with more than 8 bits; the first that is not below an image's largest value is taken
_WHITE = {"I": (255, 65535), "F": (1.0, 255, 65535)}


def small_png(content: bytes, max_side: int, max_pixels: int = MAX_PIXELS) -> bytes:
    """Decode an image completely, scale it down to at most `max_side` pixels per side, and return it as RGB PNG.

    Transparent areas become white, EXIF rotation is applied, 16-bit values are scaled to 8 bits, and an animation gives its
    first frame. Metadata, such as the place of a photo, is removed.

    Raises:
        ValueError: the content is no image of a format in `FORMATS`, is broken, or has more than `max_pixels` pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            num_pixels = _num_pixels(image)
            if num_pixels > max_pixels:
                size = f"{image.width} x {image.height} pixels of {image.format}"
                raise ValueError(f"{size} need the memory of {num_pixels}, images.max_pixels = {max_pixels}")
            if content.startswith(b"\xff\xd8") and (num_scans := content.count(_SCAN)) > MAX_SCANS:
                raise ValueError(f"{num_scans} scans, at most {MAX_SCANS} are read")
            with _ONE_LARGE_IMAGE if num_pixels > _LARGE_PIXELS else contextlib.nullcontext():
                small = _small_rgb(image, max_side)
    except _BROKEN as error:
        raise ValueError(f"not a readable image: {error}") from error
    sink = io.BytesIO()
    small.save(sink, "PNG")
    return sink.getvalue()


_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise for a broken file."""


def _num_pixels(image: Image.Image) -> int:
    """Return the pixels that decoding holds; a TIFF's tile may have more of them, and the decoder of WebP holds copies."""
    tags: Any = getattr(image, "tag_v2", {})
    tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))
    return max(image.width * image.height * (2 if image.format == "WEBP" else 1), tile)


def _small_rgb(image: Image.Image, max_side: int) -> Image.Image:
    longest = max(image.size)
    if longest > 2 * max_side:  # JPEG can be decoded at a half, a quarter or an eighth
        width, height = (max(1, 2 * max_side * side // longest) for side in image.size)
        image.draft(None, (width, height))
    image.load()
    small = _reduce(image, max(1, max(image.size) // (2 * max_side)), _to_8_bits(image))
    small.thumbnail((max_side, max_side))
    small.info.clear()
    small.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
    small = ImageOps.exif_transpose(small)
    if small.mode == "RGBA":
        white = Image.new("RGBA", small.size, "white")
        small = Image.alpha_composite(white, small).convert("RGB")
    small.info.clear()
    small.getexif().clear()
    return small


def _to_8_bits(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return what turns parts of an image into RGB, or into RGBA if the image has transparency."""
    if not image.mode.startswith(("I", "F")):
        mode = "RGBA" if image.has_transparency_data else "RGB"
        return lambda strip: strip.convert(mode)
    # Pillow would clip values above 255 to white
    highest = max(float(_values(strip).max()) for strip in _strips(image, 1))
    tops = _WHITE.get(image.mode, (65535,))
    scale = 255 / next((top for top in tops if highest <= top), highest)
    return lambda strip: Image.fromarray(np.clip(_values(strip) * scale, 0, 255).round().astype(np.uint8)).convert("RGB")


def _values(image: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(image, np.float64))


def _reduce(image: Image.Image, factor: int, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image and average each `factor` x `factor` pixels, strip by strip."""
    small = None
    top = 0
    for strip in _strips(image, factor):
        part = convert(strip).reduce(factor)
        small = small or Image.new(part.mode, (part.width, -(-image.height // factor)))
        small.paste(part, (0, top))
        top += part.height
    assert small is not None, "an image has rows"
    return small


def _strips(image: Image.Image, factor: int) -> Iterator[Image.Image]:
    """Yield an image in strips, whose heights but the last are multiples of `factor`."""
    height = max(1, _STRIP_PIXELS // (image.width * factor)) * factor
    for top in range(0, image.height, height):
        yield image.crop((0, top, image.width, min(top + height, image.height)))
