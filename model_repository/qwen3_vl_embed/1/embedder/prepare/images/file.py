"""A file that must be read within so much CPU time, and what it says of its picture before anything is decoded."""

import logging
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from time import thread_time
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from ...errors import InvalidInput

# What libraries say of a file is said in our sentence or is not worth a line of the server's log.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

MAX_RATIO = 200  # qwen-vl-utils' MAX_RATIO
ORIENTATION, SHORT = 0x0112, 3  # a tag and a type of EXIF's


Frame: TypeAlias = Image.Image | NDArray[np.uint8]  # decoded: PIL's, or (H, W, channels)


@dataclass(frozen=True)
class Picture:
    """The first frame of a file.

    `size`: (width, height) of the screen that it is shown on, before it is turned. `load`: decodes it, to PIL's or
    (H, W, 1, 3 or 4) uint8. `corner`: where the frame lies on the screen; what it does not cover is transparent.
    `profile`: an ICC profile. `orientation`: EXIF's, 1 to 8.
    """

    size: tuple[int, int]
    load: Callable[[], Frame]
    profile: bytes | None = None
    orientation: int = 1
    corner: tuple[int, int] = (0, 0)


class File(BytesIO):
    """Bytes that must be read within so much CPU time, however many parts they claim to have.

    Readers loop over parts in Python, Pillow's and ours, and some take time by the square of their number.
    """

    def __init__(self, data: bytes, max_pixels: int, seconds: float) -> None:
        super().__init__(data)
        self.data, self.max_pixels = data, max_pixels
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        self._until = thread_time() + seconds

    def check_time(self) -> None:
        if thread_time() > self._until:
            raise InvalidInput("the image takes too long to read; save it anew, without metadata, as PNG or JPEG")

    def read(self, size: int | None = -1, /) -> bytes:
        self.check_time()
        return super().read(size)

    def instead(self, data: bytes) -> "File":
        """Other bytes of the same image, within the time that is left for these."""
        file = File(data, self.max_pixels, 0)
        file._until = self._until
        return file

    def opened(self, format: str) -> ImageFile.ImageFile:
        """Its header read by Pillow, as that format; the size is within the bounds."""
        self.seek(0)
        image = Image.open(self, formats=[format])
        self.check_size(image.size)
        assert isinstance(image, ImageFile.ImageFile)
        return image

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises InvalidInput: too many pixels, or too thin."""
        (width, height), most = size, self.max_pixels
        if not width * height:
            raise InvalidInput(f"the image has {width}×{height} pixels: none at all")
        if width * height > most:
            raise InvalidInput(f"the image has {width}×{height} pixels; at most {most} are allowed: scale it down")
        if max(size) > MAX_RATIO * min(size):
            raise InvalidInput(f"the image is {width}×{height}; one side may be at most {MAX_RATIO} times the other")


def orientation(exif: bytes) -> int:
    """What EXIF (a TIFF) says; broken EXIF is ignored, as viewers do. Pillow's getexif would fall back to XMP."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4], "")
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count if order else 0, 12):
            tag, kind, values, value = struct.unpack_from(order + "HHIH", exif, at)
            if (tag, kind, values) == (ORIENTATION, SHORT, 1):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
