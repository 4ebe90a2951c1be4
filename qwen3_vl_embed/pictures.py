"""Pixels that are in memory, as the file that a server reads: without loss, and with what a viewer would heed."""

import struct
from io import BytesIO
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

Pixels: TypeAlias = Image.Image | NDArray[np.uint8]
FORMATS = dict.fromkeys(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "PNG") | {"CMYK": "TIFF"}  # Pillow's modes
SHAPES = "(H, W), (H, W, 3) or (H, W, 4)"


def encoded(pixels: Pixels) -> bytes:
    """A PNG, or a TIFF for CMYK, with the image's profile, gamma and orientation.

    What Pillow does not tell of a file (cICP, an AVIF's nclx) is not in it. A file is better sent as its path or bytes.
    An array is sRGB: uint8 of shape (H, W), (H, W, 3) or (H, W, 4), the fourth its opacity.

    Raises:
        ValueError: the array has another shape or dtype, or the image a mode that no file of one holds.
    """
    image = _image(pixels) if isinstance(pixels, np.ndarray) else pixels
    if image.mode not in FORMATS:
        raise ValueError(f'an image of the mode {image.mode} is not sent as it is: convert("RGB") it first.')
    told = {"icc_profile": image.info.get("icc_profile"), "exif": image.getexif() or None}
    kept = {name: value for name, value in told.items() if value}
    if FORMATS[image.mode] == "PNG":
        kept["pnginfo"] = _curve(image)
    file = BytesIO()
    image.save(file, FORMATS[image.mode], **kept)
    return file.getvalue()


def size(pixels: Pixels) -> int:
    """Bytes of the pixels: about what its file has, at most."""
    if isinstance(pixels, np.ndarray):
        return int(pixels.nbytes)
    return int(pixels.width * pixels.height * len(pixels.getbands()))


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise ValueError(f"an array of {pixels.dtype} is not sent: make it uint8, from 0 to 255.")
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))) or not pixels.size:
        raise ValueError(f"an array of the shape {pixels.shape} is no image: make it {SHAPES}.")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _curve(image: Image.Image) -> PngInfo:
    """What a PNG says of its colours (gAMA, cHRM) where nothing else does: Pillow reads both and writes neither."""
    told = PngInfo()
    if "srgb" in image.info or "icc_profile" in image.info:
        return told
    if gamma := image.info.get("gamma"):
        told.add(b"gAMA", struct.pack(">I", round(gamma * 100_000)))
    if points := image.info.get("chromaticity"):
        told.add(b"cHRM", struct.pack(">8I", *(round(point * 100_000) for point in points)))
    return told
