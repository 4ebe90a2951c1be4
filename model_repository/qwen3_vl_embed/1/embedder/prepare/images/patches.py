"""An RGB image -> resized once -> the patches that the vision tower reads."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from qwen_vl_utils.vision_process import smart_resize
from torch.nn.functional import interpolate

from .file import Frame

MERGE = 2  # patches per side of one token; qwen-vl-utils' SPATIAL_MERGE_SIZE


@dataclass(frozen=True)
class Patches:
    """One image as the vision tower reads it.

    `pixels`: uint8 (P, patch * patch * 3), in 2×2-merge-block order (as Qwen2VLImageProcessor). Each patch is as it
    lies in the image: rows of pixels, channel last, as `StillPatchEmbed` takes it. One frame, since both frames of a
    still image are equal. `grid`: rows and columns of patches; P is their product.
    """

    pixels: NDArray[np.uint8]
    grid: tuple[int, int]

    @property
    def tokens(self) -> int:
        """Language-model tokens that this image becomes."""
        return len(self.pixels) // MERGE**2


def resize(image: Frame, patch: int, min_pixels: int, max_pixels: int) -> NDArray[np.uint8]:
    """(H, W, 3) uint8, or PIL's, to multiples of 2 × patch within the pixel bounds: qwen-vl-utils' size, once.

    Reduced by torch's antialiased bicubic of uint8, as torchvision does; Pillow's differs by 2 levels at most.
    """
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    size = target_size((width, height), patch * MERGE, min_pixels, max_pixels)
    if size[0] > width or size[1] > height:  # there torch's is another; such images are small
        small = image if isinstance(image, Image.Image) else Image.fromarray(image)
        return np.asarray(small.resize(size, Image.Resampling.BICUBIC))
    pixels = np.asarray(image)
    if size == (width, height):
        return pixels
    writable = pixels if pixels.flags.writeable else pixels.copy()  # PIL's and AVIF's are not; torch would warn
    # (1, 3, H, W), channels last in memory; the batch comes first, or torch would not see that and answer in planes.
    planes = torch.from_numpy(writable)[None].permute(0, 3, 1, 2)
    if height - size[1] > 2 * (width - size[0]):  # Pillow 13's rule; what is between the steps is rounded to 8 bits
        planes = interpolate(planes, size=(size[1], width), mode="bicubic", antialias=True)
    resized = interpolate(planes, size=size[::-1], mode="bicubic", antialias=True)
    reduced: NDArray[np.uint8] = resized[0].permute(1, 2, 0).numpy()
    return reduced


def target_size(size: tuple[int, int], factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(width, height) in multiples of `factor`.

    qwen-vl-utils would round the short side of a thin image down to zero; that one gets the largest strip within the
    bound. (transformers' own `smart_resize` keeps the short side at one factor and then exceeds `max_pixels`.)
    """
    short, long = sorted(size)
    rounded = max(factor, round(short / factor) * factor) * max(factor, round(long / factor) * factor)
    if rounded <= max_pixels or short / (short * long / max_pixels) ** 0.5 >= factor:
        height, width = smart_resize(size[1], size[0], factor, min_pixels, max_pixels)
        return width, height
    length = max_pixels // factor // factor * factor
    return (length, factor) if size[0] >= size[1] else (factor, length)


def to_patches(image: NDArray[np.uint8], patch: int) -> Patches:
    """Cut an (H, W, 3) uint8 image whose sides are multiples of 2 × patch."""
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    strokes = image.reshape(len(image), -1).view(f"V{patch * 3}")  # a patch's row each: moved as a whole, not by bytes
    blocks = strokes.reshape(rows // MERGE, MERGE, patch, columns // MERGE, MERGE)
    blocks = np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 2))  # (block row, block column, row, column, y)
    return Patches(blocks.view(np.uint8).reshape(rows * columns, -1), (rows, columns))
