"""A decoded frame of any mode -> 8-bit sRGB on white, as it lies on its screen.

In strips, so that nothing is held twice: beside the decoded image there is only the result, 3 bytes a pixel.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from . import colour, samples
from .file import Frame, Picture

GREY = ("1", "L", "LA", "La")
TURNED = {2: (0, True), 3: (2, False), 4: (2, True), 5: (1, True), 6: (3, False), 7: (3, True), 8: (1, False)}


def rendered(picture: Picture) -> Frame:
    """The whole screen, upright: (H, W, 3) uint8, or a small one as PIL's "RGB", in which most are decoded."""
    frame = picture.load()
    width, height = frame.size if isinstance(frame, Image.Image) else frame.shape[1::-1]
    transform = _transform(frame, picture.profile)
    whole = (width, height) == picture.size and picture.corner == (0, 0)
    if isinstance(frame, np.ndarray) and frame.shape[2] == 3 and transform is None and whole:
        return upright(frame, picture.orientation)
    if whole and width * height <= samples.STRIP and picture.orientation not in TURNED:
        ((_, strip),) = samples.strips(frame)
        return _on_white(strip, transform)
    screen = np.empty((*picture.size[::-1], 3), np.uint8)
    if not whole:
        screen[:] = 255
    x, y = picture.corner
    for top, strip in samples.strips(frame):
        room = screen[y + top : y + top + strip.height, x : x + width]
        room[:] = np.asarray(_on_white(strip, transform))[: room.shape[0], : room.shape[1]]
    del frame
    return upright(screen, picture.orientation)


def _transform(frame: Frame, icc: bytes | None) -> ImageCms.ImageCmsTransform | None:
    if icc is None:
        return None
    mode = frame.mode if isinstance(frame, Image.Image) else "L" if frame.shape[2] == 1 else "RGB"
    of = colour.space(icc)
    if mode == "LAB" or (of == "CMYK") != (mode == "CMYK") or (of == "L" and mode not in GREY):
        return None
    return colour.transform(icc, of) if of else None


def _on_white(image: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    alpha = None
    if image.has_transparency_data:
        rgba = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        alpha = rgba.getchannel("A")
        image = rgba.getchannel("R") if image.mode in GREY else rgba.convert("RGB")
    if transform is not None:
        image = transform.apply(image.convert(transform.inputMode))
    elif image.mode != "RGB":  # Pillow would copy it
        image = image.convert("RGB")
    return image if alpha is None else Image.composite(image, Image.new("RGB", image.size, "white"), alpha)


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turned as EXIF's orientation says: mirrored if need be, then by quarters of a turn, anticlockwise."""
    if orientation not in TURNED:
        return pixels
    quarters, mirrored = TURNED[orientation]
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirrored else pixels, quarters))
