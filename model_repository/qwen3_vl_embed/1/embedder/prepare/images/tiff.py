"""TIFF: Pillow and its libtiff decode it; samples that Pillow would take for others are put right, or refused.

Source: TIFF 6.0 (tags by their names there); DNG 1.7 for what tells a camera's raw file.
"""

import ctypes
import struct
from functools import partial
from typing import Any

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ...errors import InvalidInput
from . import samples
from .file import File, Picture

SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
STRIPS, ORIENTATION, SAMPLES, ROWS, STRIP_BYTES, PLANAR, PREDICTOR = 273, 274, 277, 278, 279, 284, 317
COLOUR_MAP, TILE_WIDTH, TILE_LENGTH, TILES, TILE_BYTES, FORMAT = 320, 322, 323, 324, 325, 339
DNG_VERSION = 50706
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, COLOUR_FILTER, LINEAR_RAW = 0, 1, 2, 32803, 34892  # photometric interpretations
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # sample formats
KINDS = {UNSIGNED: "unsigned integers", SIGNED: "signed integers", FLOAT: "floating-point numbers"}
# By all planes.
SHARED = (WIDTH, LENGTH, COMPRESSION, FILL_ORDER, ORIENTATION, ROWS, PREDICTOR, TILE_WIDTH, TILE_LENGTH)
MAX_TILE_PIXELS = 2**24  # or twice the image; libtiff takes the memory before it reads
Tags = dict[int, Any]

# Pillow's own libtiff, found behind its extension. It would write to stderr whatever it does not like in a file.
LIBTIFF = ctypes.CDLL(Image.core.__file__)
LIBTIFF.TIFFSetErrorHandler(None)
LIBTIFF.TIFFSetWarningHandler(None)


def read(file: File) -> Picture:
    """The first page, upright already.

    Raises:
        InvalidInput: too large, a camera's raw file, or of a kind that is not read.
    """
    head = file.read(8)
    directory = TiffImagePlugin.ImageFileDirectory_v2(head + file.read(8 * (head[2] == 43)))
    file.seek(directory.next)
    directory.load(file)
    tags: Tags = dict(directory)
    photometric, subfile = tags.get(PHOTOMETRIC), tags.get(SUBFILE, 0)
    if DNG_VERSION in tags or photometric in (COLOUR_FILTER, LINEAR_RAW) or subfile & 1:
        raise InvalidInput("this is a camera's raw file (a TIFF that begins with a preview): send it as JPEG or PNG")
    size = tags[WIDTH], tags[LENGTH]
    file.check_size(size)
    if tags.get(TILE_WIDTH, 0) * tags.get(TILE_LENGTH, 0) > max(MAX_TILE_PIXELS, 2 * size[0] * size[1]):
        raise InvalidInput("the TIFF image has tiles much larger than itself; save it without tiles")
    bits, format, planar = tags.get(BITS, (1,)), tags.get(FORMAT, (UNSIGNED,)), tags.get(PLANAR, 1) == 2
    planes = tags.get(SAMPLES, 1)
    if not LIBTIFF.TIFFIsCODECConfigured(tags.get(COMPRESSION, 1)):
        raise _unread(tags)
    deep = max(bits) > 8 and (planes == 1 or planar)
    if deep and len({*bits}) == len({*format}) == 1 and (planes, photometric) in ((1, 0), (1, 1), (3, RGB)):
        white = 1.0 if format[0] == FLOAT else 2.0 ** bits[0] - 1
        parts = [file.instead(_plane(file.data, directory, index, planes)) for index in range(planes)]
        images = [_opened(part, tags) for part in parts]
        load = partial(_grey, images, white, photometric == WHITE_IS_ZERO, format[0] == SIGNED)
    elif deep:
        raise _unread(tags)
    else:
        images = [_opened(file, tags)]
        load = partial(_plain, images[0], tags)
    return Picture(images[0].size, load, tags.get(34675))


def _unread(tags: Tags) -> InvalidInput:
    bits, kind = max(tags.get(BITS, (1,))), KINDS.get(tags.get(FORMAT, (UNSIGNED,))[0], "another kind")
    return InvalidInput(
        f"this is a TIFF image of a kind that is not read here ({tags.get(SAMPLES, 1)} samples a pixel, {bits}-bit "
        f"{kind}, photometric interpretation {tags.get(PHOTOMETRIC)}, compression {tags.get(COMPRESSION, 1)}); "
        "save it as PNG"
    )


def _opened(file: File, tags: Tags) -> Image.Image:
    try:
        image = file.opened("TIFF")
    except (UnidentifiedImageError, KeyError) as error:
        raise _unread(tags) from error
    for name in ("xmp", "XML:com.adobe.xmp"):  # Pillow would turn the image as that says
        image.info.pop(name, None)
    return image


def _plain(image: Image.Image, tags: Tags) -> Image.Image:
    image.load()
    if image.palette and max(tags[COLOUR_MAP]) < 256:  # as scanners write it, and libtiff understands it
        image.putpalette(bytes(tags[COLOUR_MAP]), "RGB;L")
    return image


def _plane(data: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2, index: int, planes: int) -> bytes:
    """One of the planes as a grey file: other tags over the same data. Pillow takes planes for 8-bit ones."""
    own = {tag: tags[tag] for tag in SHARED if tag in tags}
    own |= {SAMPLES: 1, PHOTOMETRIC: BLACK_IS_ZERO, BITS: tags[BITS][0], FORMAT: tags.get(FORMAT, (UNSIGNED,))[0]}
    for tag in (STRIPS, STRIP_BYTES, TILES, TILE_BYTES):
        if tag in tags:
            count = len(tags[tag]) // planes
            own[tag] = tags[tag][index * count : (index + 1) * count]
    order = "<" if data[:2] == b"II" else ">"
    start = len(data) + len(data) % 2
    after = start + 6 + 12 * len(own)
    entries, values = struct.pack(order + "H", len(own)), b""
    for tag, value in sorted(own.items()):
        numbers = value if isinstance(value, tuple) else (value,)
        content = struct.pack(f"{order}{len(numbers)}I", *numbers)
        entries += struct.pack(order + "HHI", tag, 4, len(numbers))
        entries += content if len(numbers) == 1 else struct.pack(order + "I", after + len(values))
        values += content if len(numbers) > 1 else b""
    return data[:4] + struct.pack(order + "I", start) + data[8:].ljust(start - 8, b"\0") + entries + bytes(4) + values


def _grey(images: list[Image.Image], white: float, inverted: bool, signed: bool) -> Image.Image:
    if signed:
        raise InvalidInput(
            "the TIFF image has samples of signed integers, which have no white; save it with unsigned ones"
        )
    planes = []
    while images:
        image = images.pop(0)
        image.load()
        planes.append(samples.grey(image, white, inverted))
    return planes[0] if len(planes) == 1 else Image.merge("RGB", planes)
