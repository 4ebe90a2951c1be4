"""Encoded bytes -> the RGB image that a viewer would show -> the patches that the vision tower reads.

decode(data, …) -> (H, W, 3) uint8     file.py, and a room for each format: png, jpeg, webp, avif, tiff, bmp, gif
its numbers -> sRGB, on white          colour.py, rendering.py
resize, to_patches                     patches.py
"""

from .decoding import decode
from .patches import MERGE, Patches, resize, target_size, to_patches

__all__ = ["MERGE", "Patches", "decode", "resize", "target_size", "to_patches"]
