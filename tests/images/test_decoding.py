"""Images of every usual kind become small RGB PNGs in bounded memory; other formats, bombs and broken files are errors."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from digr.images.decoding import FORMATS, small_png


def _pixel(image, save, max_side=60, at=(0, 0), **options):
    sink = io.BytesIO()
    image.save(sink, save, **options)
    content = small_png(sink.getvalue(), max_side)
    shown = Image.open(io.BytesIO(content))
    assert shown.mode == "RGB" and not shown.info and not shown.getexif()
    return shown.getpixel(at)


def test_what_is_transparent_becomes_white():
    """A black text on nothing became a black rectangle."""
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert _pixel(clear, "PNG") == (255, 255, 255)
    assert _pixel(Image.new("RGBA", (40, 40), (255, 0, 0, 128)), "PNG") == (255, 127, 127)
    assert _pixel(Image.new("LA", (40, 40), (0, 0)), "PNG") == (255, 255, 255)
    assert _pixel(Image.new("P", (40, 40), 0), "GIF", transparency=0) == (255, 255, 255)
    assert _pixel(Image.new("RGB", (40, 40), (1, 2, 3)), "PNG", transparency=(1, 2, 3)) == (255, 255, 255)


def test_a_black_drawing_on_nothing_stays_black_on_white():
    drawing = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (0, 0, 20, 40))
    for image in (drawing, drawing.convert("LA")):
        assert [_pixel(image, "PNG", at=at) for at in ((10, 20), (30, 20))] == [(0, 0, 0), (255, 255, 255)]


def test_a_palettes_numbers_are_no_colours():
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert _pixel(image, "PNG") == _pixel(image, "GIF") == (10, 200, 30)


def test_sixteen_bits_are_scaled_to_eight():
    """All values above 255 became white."""
    grey = np.full((40, 40), 0x8000, np.uint16)
    assert _pixel(Image.fromarray(grey), "PNG") == (128, 128, 128)
    assert _pixel(Image.fromarray(grey), "TIFF") == (128, 128, 128)
    assert _pixel(Image.fromarray(grey.astype(np.int32)), "TIFF") == (128, 128, 128)
    assert _pixel(Image.fromarray(np.full((40, 40), 0.5, np.float32)), "TIFF") == (128, 128, 128)


@pytest.mark.parametrize("save", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_rotation_of_a_camera_is_applied_and_nothing_else_of_its_notes_goes_out(save):
    """A photo taken upright was shown lying."""
    photo = Image.new("RGB", (80, 40), "red")
    photo.paste("blue", (40, 0, 80, 40))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"  # turned by a quarter, and its maker
    top, bottom = (_pixel(photo, save, 40, at, exif=exif) for at in ((10, 5), (10, 35)))
    assert top[0] > 200 > 60 > top[2] and bottom[2] > 200 > 60 > bottom[0]


def test_four_inks_and_moving_pictures_are_shown_as_their_first_picture_in_rgb():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, green, _ = _pixel(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG", icc_profile=profile)
    assert red > 240 and green < 15
    frames = [Image.new("RGB", (40, 40), name) for name in ("red", "blue")]
    assert _pixel(frames[0], "GIF", save_all=True, append_images=frames[1:]) == (255, 0, 0)


def _saved(image, kind, **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_large_image_is_reduced_to_the_averages_of_its_parts(kind):
    """Strips are converted and reduced one by one; they must meet without a seam, whatever the height."""
    rng = np.random.default_rng(1)
    grid = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    large = Image.fromarray(np.kron(grid, np.ones((150, 150, 1), np.uint8)))  # 1350 x 1050, of nine by seven colours
    with Image.open(io.BytesIO(small_png(_saved(large, kind), 90))) as small:
        assert small.size == (90, 70)
        centres = np.asarray(small)[5::10, 5::10].astype(int)
    lossy = 12 if kind in ("JPEG", "WEBP") else 60 if kind == "GIF" else 0
    assert np.abs(centres - grid).max() <= lossy


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (897, 896), (3, 7)])
def test_every_shape_fits_into_the_square(size):
    with Image.open(io.BytesIO(small_png(_saved(Image.new("RGB", size, "red"), "PNG"), 448))) as small:
        longest = min(448, max(size))
        assert max(small.size) == longest and min(small.size) == max(1, round(min(size) * longest / max(size)))
        assert small.getpixel((0, 0)) == (255, 0, 0)


def test_the_white_of_a_large_image_with_sixteen_bits_is_that_of_the_whole():
    """A dark strip was not to be scaled by its own largest value."""
    values = np.zeros((1500, 1500), np.float32)
    values[:750], values[750:] = 0.25, 200.0
    with Image.open(io.BytesIO(small_png(_saved(Image.fromarray(values), "TIFF"), 100))) as small:
        assert [small.getpixel((50, row))[0] for row in (10, 90)] == [0, 200]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot identify"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot identify"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
        (_saved(Image.new("RGB", (16, 16)), "ICNS"), "cannot identify"),
        (_saved(Image.new("RGB", (16, 16)), "ICO"), "cannot identify"),
        (_saved(Image.new("RGB", (16, 16)), "PPM"), "cannot identify"),
        (_saved(Image.new("RGB", (160, 160), "red"), "JPEG")[:-200], "truncated"),
        (_saved(Image.new("RGB", (16, 16)), "PNG")[:40], ""),
        (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0), ""),
        (_saved(Image.new("1", (5001, 5000)), "PNG"), "5001 x 5000 pixels of PNG .* images[.]max_pixels = 25000000"),
        (_saved(Image.new("RGB", (3600, 3600)), "WEBP", lossless=True, quality=0, method=0), "need the memory of 25920000"),
    ],
)
def test_other_formats_bombs_and_broken_files_are_errors(content, reason):
    with pytest.raises(ValueError, match=rf"not a readable image: .*{reason}"):
        small_png(content, 64)


def _chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_text_in_a_png_that_unpacks_to_much_is_not_unpacked(kind):
    bomb = zlib.compress(b"a" * 200_000_000, 9)
    body = (b"name\0\1\0\0\0" if kind == b"iTXt" else b"name\0\0") + bomb
    png = _saved(Image.new("RGB", (16, 16)), "PNG")
    content = png[:33] + _chunk(kind, body) + png[33:]
    used = _peak_mib(content)
    assert used < 60


def test_a_jpeg_of_a_thousand_empty_scans_is_not_decoded():
    """A scan of ten bytes costs milliseconds at 25 million pixels, so a file of 10 MB took 40 minutes."""
    progressive = _saved(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    last = progressive[progressive.rindex(b"\xff\xda") :]
    scan = last[: 2 + int.from_bytes(last[2:4])]
    assert progressive.count(b"\xff\xda") == 10 and len(scan) < 16
    assert small_png(progressive[:-2] + 90 * scan + progressive[-2:], 64)
    with pytest.raises(ValueError, match="101 scans, at most 100 are read"):
        small_png(progressive[:-2] + 91 * scan + progressive[-2:], 64)


def test_a_tile_of_a_tiff_counts_if_it_is_larger_than_the_image():
    tags = [(256, 4, 10), (257, 4, 10), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 1)]
    tags += [(322, 4, 60_000), (323, 4, 60_000), (324, 4, 200), (325, 4, 100)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    content = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4) + bytes(300)
    with pytest.raises(ValueError, match=r"images\.max_pixels"):
        small_png(content, 64)


_PEAK = """
import io, pathlib, sys
from PIL import Image
from digr.images.decoding import small_png


def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


small = io.BytesIO()
Image.new("RGBA", (2000, 500)).save(small, "PNG")
small_png(small.getvalue(), 448)
content = sys.stdin.buffer.read()
before = peak()
try:
    small_png(content, 448)
except ValueError:
    pass
print((peak() - before) // 1024)
"""


def _peak_mib(content):
    """Return by how much decoding raises the memory of a process that has decoded before, MiB."""
    return int(subprocess.run([sys.executable, "-c", _PEAK], input=content, capture_output=True, check=True).stdout)


def test_the_largest_images_cost_bounded_memory():
    """A PNG of 194 kB took 400 MiB. Of 25 million pixels, one takes 100 MiB; in a progressive JPEG its coefficients 150."""
    clear = Image.new("RGBA", (5000, 5000), (1, 2, 3, 40))
    assert 90 < _peak_mib(_saved(clear, "PNG")) < 130
    assert _peak_mib(_saved(Image.new("RGB", (5000, 5000)), "JPEG")) < 60
    assert _peak_mib(_saved(Image.new("RGB", (5000, 5000)), "JPEG", progressive=True, subsampling=0)) < 190
    assert _peak_mib(_saved(Image.new("RGBA", (3500, 3500)), "WEBP", lossless=True, quality=0, method=0)) < 230
    assert _peak_mib(_saved(Image.new("RGBA", (7000, 7000), (1, 2, 3, 40)), "PNG")) < 20


_PICTURES = [_saved(Image.radial_gradient("L").resize((40, 30)).convert("RGB"), kind) for kind in FORMATS]


@given(st.sampled_from(_PICTURES), st.data())
def test_bytes_that_are_changed_give_a_png_or_a_value_error(picture, data):
    """A decoder must not raise anything else: it would end a whole batch of a miner."""
    content = bytearray(picture)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    for broken in (bytes(content), bytes(content[:cut])):
        try:
            assert small_png(broken, 16, 100_000).startswith(b"\x89PNG")
        except ValueError as error:
            assert str(error).startswith("not a readable image")
