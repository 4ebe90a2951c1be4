"""What an image costs before it is decoded: the pixels that its header names, and how many are decoded at once.

A flat WebP of 36 bytes has 40 megapixels: bytes say nothing, and nobody can tell from the outside what a batch costs.
A long text, which takes seconds to be cut into tokens, is counted as so many pixels too.
"""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from threading import Condition, Lock

from PIL import Image

from ..inputs import EmbedInput
from .images.tiff import TILE_LENGTH, TILE_WIDTH

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # Pillow's names of what is decoded
SMALL = 512 * 512  # up to here an image costs about what a text costs: some milliseconds
LONG_TEXT = 2**16  # bytes, of which a text has fewer as a rule, if it has no more tokens than are allowed
PIXELS_A_BYTE = 32  # of a longer one: a megabyte takes up to two seconds, as 32 megapixels do
MOST_READS = 1000  # of a header; a camera's JPEG takes a hundred, hostile ones a million
MOST_TEXTS, MOST_SCANS = 4, 16  # of a PNG, each of which is inflated; of a JPEG, each of which goes over all of it


class _Header(BytesIO):
    """A file in which nobody reads for long."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MOST_READS:
            raise OSError("no end of the header in sight")
        return super().read(size)


def pixels(content: bytes, most: int) -> int:
    """What decoding an image file costs: the pixels in its header, or its bytes if it has more of these.

    `most` where the header does not say, and for what costs far more than its pixels. Takes 50 µs, a few milliseconds
    for a file of many megabytes. Whether the image can be embedded at all shows when it is decoded.
    """
    try:
        return int(min(most, max(_decoded(content), len(content))))
    except Exception:  # Pillow's plugins raise many types on hostile headers
        return most


def _decoded(content: bytes) -> float:
    """Pixels that are decoded; infinity for what costs far more than these."""
    if content.startswith(b"\x89PNG"):  # its header lies where it must; Pillow would inflate the texts behind it
        width, height = map(int, struct.unpack(">II", content[16:24]))
        many_texts = content.count(b"zTXt") + content.count(b"iTXt") > MOST_TEXTS
        return math.inf if many_texts else width * height
    image = Image.open(_Header(content), formats=FORMATS)
    if image.format == "TIFF":  # in whole tiles
        tile = math.prod(int(image.tag_v2.get(tag, 0)) for tag in (TILE_WIDTH, TILE_LENGTH))
        return float(max(image.width * image.height, tile))
    many_scans = image.format in ("JPEG", "MPO") and content.count(b"\xff\xda") > MOST_SCANS
    in_python = image.format == "BMP" and image.tile[0][0] == "bmp_rle"
    return math.inf if many_scans or in_python else image.width * image.height


def cost(item: EmbedInput, most: int) -> int:
    """Pixels that are decoded for an input, or made by enlarging its image; and as many as its text costs, if long."""
    image = 0 if item.image is None else max(pixels(item.image, most), item.options.min_pixels or 0)
    return image + text_pixels(len((item.text or "").encode("utf-8", "surrogatepass")), most)


def text_pixels(size: int, most: int) -> int:
    """Pixels that cost as much as a text of so many bytes: 0 up to `LONG_TEXT`, `most` at most."""
    return min(most, PIXELS_A_BYTE * size) if size > LONG_TEXT else 0


class Budget:
    """At most so many pixels at once, first come, first served; whatever has more is alone."""

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._turn = Lock()  # one waits for room, the others behind it: a large image is not overtaken for ever
        self._freed = Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Waits until there is room for them; they are free again when the block ends."""
        pixels = min(pixels, self._most)
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._freed:
                self._free += pixels
                self._freed.notify_all()
