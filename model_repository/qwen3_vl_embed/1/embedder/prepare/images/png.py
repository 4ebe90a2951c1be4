"""PNG: its chunks are read here, and Pillow gets the stream of the picture's samples.

Source: Portable Network Graphics (PNG) Specification, third edition. What it leaves open is as in Chromium 156.
"""

import struct
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from ...errors import InvalidInput
from . import colour, samples
from .file import File, Picture, orientation

MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types
MODES = {  # (bits of a sample, colour type) -> Pillow's mode, and its name for them as they are stored
    (1, GREY): ("1", "1"),
    (2, GREY): ("L", "L;2"),
    (4, GREY): ("L", "L;4"),
    (8, GREY): ("L", "L"),
    (16, GREY): ("I;16", "I;16B"),
    (8, RGB): ("RGB", "RGB"),
    (16, RGB): ("RGB", "RGB;16B"),
    (1, PALETTE): ("P", "P;1"),
    (2, PALETTE): ("P", "P;2"),
    (4, PALETTE): ("P", "P;4"),
    (8, PALETTE): ("P", "P"),
    (8, GREY_ALPHA): ("LA", "LA"),
    (16, GREY_ALPHA): ("RGBA", "LA;16B"),
    (8, RGB_ALPHA): ("RGBA", "RGBA"),
    (16, RGB_ALPHA): ("RGBA", "RGBA;16B"),
}
LENGTHS = {b"cICP": 4, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"acTL": 8, b"fcTL": 26}  # any other is void
PROFILE_BYTES = 2**23  # of an inflated ICC profile
SRGB_GAMMA = (43182, 47727)  # a gAMA without cHRM within 5 % of 1/2.2 is taken for sRGB, as browsers do
Head = dict[bytes, memoryview]  # what stands before the pixels: of each kind the first chunk's content


def read(file: File) -> Picture:
    """The picture and what its chunks say of its colours.

    Raises:
        InvalidInput: too large, HDR, or without a picture.
    """
    head, frame, pixels = _chunks(file)
    if len(head.get(b"IHDR", b"")) != 13 or not pixels:
        raise InvalidInput("the PNG image is truncated or damaged: it ends before its pixels")
    screen = struct.unpack(">II", head[b"IHDR"][:8])
    file.check_size(screen)
    width, height, x, y = struct.unpack(">4I", frame[4:20]) if frame else (*screen, 0, 0)
    if not width * height or x + width > screen[0] or y + height > screen[1]:
        raise InvalidInput("the PNG image is damaged: its first frame lies outside of the image")
    load = partial(_load, head, (width, height), pixels)
    return Picture(screen, load, _profile(head), orientation(bytes(head.get(b"eXIf", b""))), (x, y))


def _chunks(file: File) -> tuple[Head, memoryview | None, list[memoryview]]:
    """(what stands before the pixels, the first frame's fcTL if it is not the default image, its zlib stream).

    A wrong checksum or length makes an ancillary chunk void, and nothing else.
    """
    head: Head = {}
    frame: memoryview | None = None
    still: list[memoryview] = []  # IDAT: the default image
    moving: list[memoryview] = []  # fdAT
    for kind, content in _walk(file):
        if kind == b"IDAT":
            still.append(content)
        elif kind == b"tRNS" and b"PLTE" not in head and head[b"IHDR"][9] == PALETTE:
            continue
        elif not still:
            head.setdefault(kind, content)
        elif b"fcTL" in head or not any(head.get(b"acTL", b"")[:4]):  # it begins with the default image, or is none
            break
        elif kind == b"fdAT" and frame:
            moving.append(content[4:])
        elif kind == b"fcTL":
            if frame:
                break
            frame = content
    return (head, frame, moving) if frame and moving else (head, None, still)


def _walk(file: File) -> Iterator[tuple[bytes, memoryview]]:
    """(kind, content) of each chunk down to the end; what is cut off is passed over, as far as its picture goes."""
    data, at = memoryview(file.data), len(MAGIC)
    while True:
        file.check_time()
        length, kind = int.from_bytes(data[at : at + 4]), bytes(data[at + 4 : at + 8])
        content, checksum = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        at += 12 + length
        if len(kind) < 4 or kind == b"IEND":
            return
        right = zlib.crc32(content, zlib.crc32(kind)) == int.from_bytes(checksum) and len(checksum) == 4
        if not right and kind[0] & 32 == 0 and len(checksum) == 4:
            raise InvalidInput(f"the PNG image is damaged: its {kind.decode('latin1')} chunk has a wrong checksum")
        if (right and LENGTHS.get(kind, length) == length) or kind in (b"IDAT", b"fdAT"):
            yield kind, content


def _profile(head: Head) -> bytes | None:
    """What cICP says, else iCCP, else sRGB, else gAMA with cHRM."""
    if b"cICP" in head:
        if head[b"cICP"][2]:
            raise InvalidInput(
                "the PNG image's cICP chunk says that it is not RGB, which PNG does not allow; remove it"
            )
        if head[b"cICP"][3] == 1 and (profile := colour.by_code_points(*head[b"cICP"][:2])):
            return profile
    if (profile := _embedded(head)) and colour.space(profile):
        return profile
    if b"gAMA" not in head or (b"sRGB" in head and head[b"sRGB"][0] <= 3):
        return None
    gamma = int.from_bytes(head[b"gAMA"])
    if gamma == 0 or (b"cHRM" not in head and SRGB_GAMMA[0] <= gamma <= SRGB_GAMMA[1]):
        return None
    primaries: Any = colour.PRIMARIES[1]
    if b"cHRM" in head:
        white, *others = np.array(struct.unpack(">8I", head[b"cHRM"])).reshape(4, 2) / 1e5
        primaries = (*others, white)
    try:
        return colour.profile(primaries, colour.power(1e5 / gamma))
    except ValueError:
        return None


def _embedded(head: Head) -> bytes | None:
    """iCCP's profile, if it is whole."""
    if b"iCCP" not in head:
        return None
    _, _, compressed = bytes(head[b"iCCP"]).partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(compressed[1:], PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if inflate.eof else None


def _load(head: Head, size: tuple[int, int], pixels: list[memoryview]) -> Image.Image:
    """Decoded by Pillow; a colour key is applied here, to samples as they are there."""
    depth, kind, _, filtering, interlaced = head[b"IHDR"][8:]
    if filtering:
        raise ValueError("the PNG specification has one filter method, 0")
    if kind == PALETTE and b"PLTE" not in head:
        raise InvalidInput("the PNG image is damaged: its pixels are numbers of a palette that is not there")
    mode, stored = MODES[depth, kind]
    decoded = partial(Image.frombytes, mode, size, b"".join(pixels), "zip")
    key, alpha = _key(head, depth, kind), None
    if key and depth == 16 and kind == RGB:  # Pillow keeps the upper bytes; read as little-endian, the lower ones
        alpha = _keyed(decoded("RGB;16L", bool(interlaced)), [value & 255 for value in key])
        key = [value >> 8 for value in key]
    image = decoded(stored, bool(interlaced))
    if kind == PALETTE:
        image.putpalette(bytes(head[b"PLTE"]))
        if b"tRNS" in head:
            image.info["transparency"] = bytes(head[b"tRNS"])
    if key:
        other = _keyed(image, key)
        alpha = ImageChops.lighter(alpha, other) if alpha else other
    if image.mode.startswith("I"):
        image = samples.grey(image, 65535)
    if alpha:
        image = image.convert("L") if image.mode == "1" else image
        image.putalpha(alpha)
    return image


def _key(head: Head, depth: int, kind: int) -> list[int] | None:
    """The grey or the RGB value that is transparent, scaled to 8 bits as Pillow scales fewer."""
    content = head.get(b"tRNS", b"")
    if len(content) != {GREY: 2, RGB: 6}.get(kind):
        return None
    values = [value & (65535 if depth == 16 else 255) for value in struct.unpack(f">{len(content) // 2}H", content)]
    return [value * 255 // (2**depth - 1) for value in values] if depth < 8 else values


def _keyed(image: Image.Image, key: list[int]) -> Image.Image:
    """Alpha: 0 where all channels equal the key."""

    def rule(values: NDArray[Any]) -> NDArray[Any]:
        channels = np.moveaxis(values, -1, 0) if values.ndim == 3 else [values * 255 if image.mode == "1" else values]
        differs = np.logical_or.reduce([channel != value for channel, value in zip(channels, key, strict=True)])
        return np.where(differs, 255, 0)

    return samples.levels(image, rule)
