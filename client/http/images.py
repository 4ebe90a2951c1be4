"""Base64 text to the bytes of an image file; what it costs to decode these, and to read a long text.

A string is always content: no path is opened and no address fetched, whatever it looks like (a JPEG's base64 starts
with `/9j/`). Nothing is decoded here, and nothing refused for what it is: that is the model's affair.
"""

import binascii
import math
import re
import struct
from io import BytesIO

from PIL import Image

from client.errors import InvalidInput
from client.items import LONG_TEXT, PIXELS_A_BYTE

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # that the model reads
MOST_PIXELS = 40_000_000  # that the model decodes, by its default
_MOST_READS = 1000  # of a header; a camera's JPEG takes a hundred, hostile ones a million
_MOST_TEXTS, _MOST_SCANS = 4, 16  # of a PNG, each of which is inflated; of a JPEG, each of which goes over all of it
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF's tags
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{1,30}:", re.IGNORECASE)  # ":" is not in base64's alphabet


def decode_image(value: str, param: str) -> bytes:
    """Decode bare base64, or a `data:image/…;base64,` URL.

    Raises:
        InvalidInput: anything else; `param` names the item.
    """
    payload = _data_url_payload(value, param) if value[:5].lower() == "data:" else value
    if _SCHEME.match(payload):
        raise InvalidInput("Addresses and paths are not opened here: send the image itself, base64-encoded.", param)
    try:
        content = binascii.a2b_base64(payload, strict_mode=True)
    except ValueError as error:  # binascii.Error is one, and so is a character outside ASCII
        raise InvalidInput(
            f"The image is not valid base64 ({str(error).lower()}): use the standard alphabet with padding, "
            "without line breaks.",
            param,
        ) from None
    if not content:
        raise InvalidInput("The image is empty: send the base64 of an image file.", param)
    return content


class _Header(BytesIO):
    """A file in which nobody reads for long."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _MOST_READS:
            raise OSError("no end of the header in sight")
        return super().read(size)


def pixels(content: bytes, most: int = MOST_PIXELS) -> int:
    """What decoding an image file costs: the pixels in its header, or its bytes if it has more of these.

    `most` where the header does not say, and for what costs far more than its pixels; the model counts the same
    (`embedder/prepare/pixels.py`). Takes 50 µs, a few milliseconds for a file of many megabytes.
    """
    try:
        return int(min(most, max(_decoded(content), len(content))))
    except Exception:  # Pillow's plugins raise many types on hostile headers
        return most


def text_pixels(size: int, most: int = MOST_PIXELS) -> int:
    """What a text of so many bytes costs, in pixels: 0, unless it is slow to be cut into tokens."""
    return min(most, PIXELS_A_BYTE * size) if size > LONG_TEXT else 0


def _decoded(content: bytes) -> float:
    """Pixels that are decoded; infinity for what costs far more than these."""
    if content.startswith(b"\x89PNG"):  # its header lies where it must; Pillow would inflate the texts behind it
        width, height = map(int, struct.unpack(">II", content[16:24]))
        many_texts = content.count(b"zTXt") + content.count(b"iTXt") > _MOST_TEXTS
        return math.inf if many_texts else width * height
    image = Image.open(_Header(content), formats=FORMATS)
    if image.format == "TIFF":  # in whole tiles
        tile = math.prod(int(image.tag_v2.get(tag, 0)) for tag in (_TILE_WIDTH, _TILE_LENGTH))
        return float(max(image.width * image.height, tile))
    many_scans = image.format in ("JPEG", "MPO") and content.count(b"\xff\xda") > _MOST_SCANS
    in_python = image.format == "BMP" and image.tile[0][0] == "bmp_rle"
    return math.inf if many_scans or in_python else image.width * image.height


def _data_url_payload(value: str, param: str) -> str:
    header, comma, payload = value[5:].partition(",")
    media_type, *parameters = header.lower().split(";")
    if media_type.startswith("video/"):
        raise InvalidInput("Video is not supported: single images are served, so send one frame as an image.", param)
    if media_type and not media_type.startswith("image/"):
        raise InvalidInput("The data URL is not an image: send data:image/…;base64,… or bare base64.", param)
    if not comma or "base64" not in parameters:
        raise InvalidInput("The data URL is not base64: send data:image/…;base64,… or bare base64.", param)
    return payload
