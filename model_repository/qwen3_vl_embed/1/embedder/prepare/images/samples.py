"""Decoded samples, a strip at a time: what Pillow leaves as it was in the file becomes 8 bits with white at 255."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import InvalidInput
from .file import Frame

STRIP = 2**18  # pixels


def strips(frame: Frame) -> Iterator[tuple[int, Image.Image]]:
    """(first row, some rows) of an image or of (H, W, 1, 3 or 4), so that no step holds the whole twice."""
    width, height = frame.size if isinstance(frame, Image.Image) else frame.shape[1::-1]
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        if isinstance(frame, Image.Image):
            yield top, frame if height <= rows else frame.crop((0, top, width, bottom))
        else:
            yield top, Image.fromarray(frame[top:bottom, :, 0] if frame.shape[2] == 1 else frame[top:bottom])


def levels(image: Image.Image, rule: Callable[[NDArray[Any]], NDArray[Any]]) -> Image.Image:
    """An "L" image by a rule from its samples to 0…255."""
    result = Image.new("L", image.size)
    for top, strip in strips(image):
        result.paste(Image.fromarray(rule(np.asarray(strip)).astype(np.uint8)), (0, top))
    return result


def grey(image: Image.Image, white: float, inverted: bool = False) -> Image.Image:
    """Grey of more than 8 bits, or float, as "L".

    Raises:
        InvalidInput: a value lies outside 0…`white`.
    """

    def scaled(values: NDArray[Any]) -> NDArray[Any]:
        if image.mode == "I" and white > 2**31:
            values = values.view(np.uint32)
        numbers = values.astype(np.float64)
        if not (np.isfinite(numbers).all() and numbers.min() >= 0 and numbers.max() <= white):
            raise InvalidInput(f"the image has values outside 0…{white:g}; convert it to 8 or 16 bits")
        numbers = np.round(numbers * (255 / white))
        return 255 - numbers if inverted else numbers

    return levels(image, scaled)
