"""Encoded bytes -> the RGB image that a viewer would show -> the patches that the vision tower reads.

Knows image files and Qwen's patch order; not prompts, not torch. Resizing is qwen-vl-utils', done once.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms, ImageOps
from qwen_vl_utils.vision_process import smart_resize

from embedder.errors import InvalidInput

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MERGE = 2  # patches per side of one token; qwen-vl-utils' SPATIAL_MERGE_SIZE
MAX_RATIO = 200  # qwen-vl-utils' MAX_RATIO
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class Patches:
    """One image as the vision tower reads it.

    `pixels`: uint8 (P, patch * patch * 3), in 2×2-merge-block order (as Qwen2VLImageProcessor), each patch as it lies
    in the image: rows of pixels, channel last (`StillPatchEmbed` knows). One frame, since both frames of a still image
    are equal. `grid`: rows and columns of patches; P is their product.
    """

    pixels: np.ndarray
    grid: tuple[int, int]

    @property
    def tokens(self) -> int:
        """Language-model tokens that this image becomes."""
        return len(self.pixels) // MERGE**2


def decode(data: bytes, max_bytes: int, max_pixels: int) -> Image.Image:
    """The first frame as 8-bit sRGB: EXIF orientation applied, alpha on white, 16 bits scaled, ICC profile honoured.

    Raises:
        InvalidInput: not an image of `FORMATS`, broken, too thin, or too large (seen in the header, before decoding).
    """
    if len(data) > max_bytes:
        raise InvalidInput(f"the image file has {len(data)} bytes; at most {max_bytes} are allowed")
    if _is_video(data):
        raise InvalidInput("this is a video; single images are served: send one frame as PNG, JPEG or WebP")
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Exception as error:  # Pillow's plugins raise many types on hostile headers
        raise InvalidInput(f"this is not an image this server reads ({', '.join(FORMATS)})") from error
    _check_size(image.size, max_pixels)
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return to_srgb(image)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"the {image.format} image cannot be decoded; is the file truncated or damaged?") from error


def _is_video(data: bytes) -> bool:
    iso = data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
    return iso or data[:4] == b"\x1aE\xdf\xa3" or (data[:4] == b"RIFF" and data[8:12] == b"AVI ")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise InvalidInput(f"the image has {width}×{height} pixels; at most {max_pixels} are allowed: scale it down")
    if max(size) > MAX_RATIO * min(size):
        raise InvalidInput(f"the image is {width}×{height}; one side may be at most {MAX_RATIO} times the other")


def to_srgb(image: Image.Image) -> Image.Image:
    """Any PIL mode to RGB as a viewer shows it (`docs/design.md`, "Colours").

    Raises:
        InvalidInput: a 32-bit image whose range no convention gives.
    """
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    alpha = None
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        image = rgba if image.mode not in ("LA", "L") else image.convert("L")
    profile = image.info.get("icc_profile")
    image = _apply_profile(image, profile) if profile else rgb(image)
    if alpha is None:
        return image
    image.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")


def rgb(image: Image.Image) -> Image.Image:
    """Pillow's `convert` copies an image that is RGB already: 36 MB of a photo."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (PNG, TIFF) has white at 65,535, float grey (TIFF) at 1; Pillow's own conversion would clip both."""
    values = np.asarray(image, dtype=np.float64)
    white = 1.0 if image.mode == "F" else 65535.0
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= white):
        raise InvalidInput(f"the {image.mode} image has values outside 0…{white:g}; convert it to 8 or 16 bits")
    grey = Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))
    grey.info = {key: image.info[key] for key in ("icc_profile",) if key in image.info}
    return grey


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """To sRGB, relative colorimetric; a profile that is broken or does not fit the mode is ignored, as viewers do."""
    if image.mode not in ("L", "CMYK", "LAB"):
        image = rgb(image)
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return rgb(image)
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        return ImageCms.profileToProfile(image, source, SRGB, renderingIntent=intent, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return rgb(image)


def resize(image: Image.Image, patch: int, min_pixels: int, max_pixels: int) -> Image.Image:
    """To multiples of 2 × patch within the pixel bounds: qwen-vl-utils' size and filter (Pillow's bicubic); once."""
    size = target_size(image.size, patch * MERGE, min_pixels, max_pixels)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


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


def to_patches(image: Image.Image, patch: int) -> Patches:
    """Cut an RGB image whose sides are multiples of 2 × patch."""
    pixels = np.asarray(image)  # (H, W, 3) uint8
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    blocks = pixels.reshape(rows // MERGE, MERGE, patch, columns // MERGE, MERGE, patch * 3)
    blocks = blocks.transpose(0, 3, 1, 4, 2, 5)  # (block row, block column, row, column, y, x and channel)
    return Patches(np.ascontiguousarray(blocks).reshape(rows * columns, -1), (rows, columns))
