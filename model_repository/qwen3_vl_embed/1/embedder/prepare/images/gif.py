"""GIF: Pillow decodes the first frame; what it does not cover of its screen is transparent.

Source: GIF89a. What it leaves open is as in Chromium 156: a first frame that is larger makes the screen larger.
"""

from functools import partial

from PIL import Image

from .file import File, Picture


def read(file: File) -> Picture:
    image = file.opened("GIF")
    box = image.tile[0].extents if image.tile else (0, 0, *image.size)
    return Picture(image.size, partial(_load, image, box), corner=box[:2])


def _load(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    image.load()
    return image.crop(box)
