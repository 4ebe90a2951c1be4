"""JPEG: libjpeg-turbo decodes it in one call, after its scans have been counted; what it only warns of goes to Pillow.

Source: ITU-T T.81. A picture that is cut is refused, even with an end behind it; one that lacks only its end is whole.
One whose codes are broken is refused too: libjpeg-turbo would go on with guesses.
"""

import re
from collections.abc import Iterator
from functools import partial

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from ...errors import InvalidInput
from .file import File, Picture, orientation

MAX_SCANS = 64  # a progressive image has about ten, and each goes over the whole image again
MAX_WORK = 2**30  # pixels times scans: a second or so, in which libjpeg-turbo cannot be interrupted
START_OF_SCAN, END = b"\xff\xda", b"\xff\xd9"
COLOURS = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # Pillow's mode -> simplejpeg's name
# Warnings of libjpeg-turbo's (jerror.h) behind which its pixels are guesses.
GUESSED = re.compile("bad Huffman code|bad arithmetic code|Inconsistent progression|Invalid SOS parameters")
NO_PICTURE = bytes([*range(0xE1, 0xEE), 0xEF, 0xFE])  # segments of applications, but for JFIF's and Adobe's; comments
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # one with a length behind it, or the image's end


def read(file: File) -> Picture:
    """The picture of a JPEG, or the first one of several (MPO).

    Raises:
        InvalidInput: too large, or too many scans.
    """
    image = file.opened("JPEG")
    assert isinstance(image, JpegImagePlugin.JpegImageFile)
    exif = next((part[6:] for name, part in image.applist if name == "APP1" and part[:5] == b"Exif\0"), b"")
    most = min(MAX_SCANS, MAX_WORK // (image.width * image.height))
    progressive, whole = "progressive" in image.info, True
    if progressive or next(_scans(file), b"")[:1] != bytes([len(image.layer)]):
        # A baseline image whose first scan has all components is read no further: its data need not be searched.
        scans = []
        for scan in _scans(file):
            scans.append(scan)
            if len(scans) > most:
                raise InvalidInput(f"the JPEG image has more than {most} scans; save it as a baseline JPEG")
        whole = _complete(scans, [layer[0] for layer in image.layer], progressive)
    load = partial(_load, file, image, whole)
    return Picture(image.size, load, image.info.get("icc_profile"), orientation(exif))


def _scans(file: File) -> Iterator[bytes]:
    """The header of each scan of the first image: number of components, they, first and last coefficient, bits."""
    at = 2
    while (marker := _MARKER.search(file.data, at)) and marker[0] != END:
        file.check_time()
        start = marker.end()
        at = start + max(2, int.from_bytes(file.data[start : start + 2]))
        if marker[0] == START_OF_SCAN:
            yield file.data[start + 2 : at]


def _complete(scans: list[bytes], components: list[int], progressive: bool) -> bool:
    """Whether the scans bring all of each component: a file may have been cut between two of them.

    A progressive image's scans bring some of the 64 coefficients down to some bit (T.81, G.1.1.1).
    """
    left = {component: [14] * 64 for component in components}  # bits of each coefficient that no scan has brought
    for scan in scans:
        count = scan[0]
        first, last, bits = scan[1 + 2 * count : 4 + 2 * count] if progressive else (0, 63, 0)
        for component in scan[1 : 1 + 2 * count : 2]:
            left.get(component, [0] * 64)[first : last + 1] = [bits & 15] * (last + 1 - first)
    return not any(any(bits) for bits in left.values())


def _load(file: File, image: Image.Image, whole: bool) -> NDArray[np.uint8] | Image.Image:
    cut = InvalidInput("the JPEG image is cut: a part of its picture is missing; send the whole file")
    if not whole:
        raise cut
    try:
        pixels = simplejpeg.decode_jpeg(file.data, COLOURS[image.mode])
    except ValueError:  # a warning of libjpeg-turbo's; the first one hides the others
        data = _tidy(file.data)
        try:
            pixels = simplejpeg.decode_jpeg(data, COLOURS[image.mode])
        except ValueError as error:
            if "premature end of data segment" in str(error):
                raise cut from error
            if guessed := GUESSED.search(str(error)):
                raise InvalidInput(
                    f"the JPEG image is damaged ({guessed[0]}): a part of its picture would be a guess; send the file "
                    "as it was before"
                ) from error
            image = file.instead(data).opened("JPEG")
            image.load()
            return image
    if image.mode != "CMYK":
        return pixels
    return Image.frombuffer("CMYK", image.size, pixels, "raw", "CMYK;I", 0, 1)  # inverted, as Adobe's programs write it


def _tidy(data: bytes) -> bytes:
    """Without what says nothing of the pixels in the header, between its segments or in them, and with an end."""
    parts, at = [data[:2]], 2
    while (marker := _MARKER.search(data, at)) and marker[0] not in (START_OF_SCAN, END):
        start, at = marker.start(), marker.end() + max(2, int.from_bytes(data[marker.end() : marker.end() + 2]))
        parts += [] if marker[0][1] in NO_PICTURE else [data[start:at]]
    return b"".join([*parts, data[marker.start() :] if marker else b"", END])
