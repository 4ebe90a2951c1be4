"""Encoded bytes -> the RGB image that a viewer would show -> the patches that the vision tower reads.

Knows image files and Qwen's patch order; not prompts, not torch. Resizing is qwen-vl-utils', done once.
"""

import re
from dataclasses import dataclass
from io import BytesIO
from time import thread_time

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from qwen_vl_utils.vision_process import smart_resize

from embedder.errors import InvalidInput

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MERGE = 2  # patches per side of one token; qwen-vl-utils' SPATIAL_MERGE_SIZE
MAX_RATIO = 200  # qwen-vl-utils' MAX_RATIO
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
WHITE = (255, 255, 255, 255)
HEADER_SECONDS, DECODE_SECONDS = 1.0, 4.0  # of CPU, at most; honest headers take milliseconds, 40 megapixels a second
MAX_SCANS = 64  # of a JPEG; a progressive one has about ten, and each goes over the whole image again
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF's tags
MAX_TILE_PIXELS = 2**24  # of a TIFF, or twice the image; libtiff takes the memory before it reads
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF's orientation -> what undoes it


@dataclass(frozen=True)
class Patches:
    """One image as the vision tower reads it.

    `pixels`: uint8 (P, patch * patch * 3), in 2×2-merge-block order (as Qwen2VLImageProcessor), each patch as it lies
    in the image: rows of pixels, channel last (`StillPatchEmbed` knows). One frame, since both frames of a still image
    are equal. `grid`: rows and columns of patches; P is their product.
    """

    pixels: NDArray[np.uint8]
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
    image = _open(data, max_pixels)
    _check_size(image.size, max_pixels)
    _check_work(image, data)
    try:
        image.load()
        return to_srgb(_upright(image))
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"the {image.format} image cannot be decoded; is the file truncated or damaged?") from error


class _File(BytesIO):
    """A file that must be read within so much CPU time, however many parts it claims to have.

    Pillow's readers loop over parts in Python, and joining EXIF segments takes time by the square of their number.
    """

    def allow(self, seconds: float) -> None:
        self._until = thread_time() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        if thread_time() > self._until:
            raise InvalidInput("the image takes too long to read; save it anew, without metadata, as PNG or JPEG")
        return super().read(size)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The image with its header read; nothing is decoded."""
    file = _File(data)
    file.allow(HEADER_SECONDS)
    try:
        image = Image.open(file, formats=FORMATS)
    except InvalidInput:
        raise
    except UnidentifiedImageError as error:
        raise InvalidInput(f"this is not an image this server reads ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise InvalidInput(f"the image is far above {max_pixels} pixels; at most so many are allowed") from error
    except Exception as error:  # Pillow's plugins raise many types on hostile headers
        raise InvalidInput("the image's header cannot be read; is the file damaged?") from error
    file.allow(DECODE_SECONDS)
    return image


def _is_video(data: bytes) -> bool:
    iso = data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
    return iso or data[:4] == b"\x1aE\xdf\xa3" or (data[:4] == b"RIFF" and data[8:12] == b"AVI ")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise InvalidInput(f"the image has {width}×{height} pixels; at most {max_pixels} are allowed: scale it down")
    if max(size) > MAX_RATIO * min(size):
        raise InvalidInput(f"the image is {width}×{height}; one side may be at most {MAX_RATIO} times the other")


def _check_work(image: Image.Image, data: bytes) -> None:
    """Small files that would take minutes or gigabytes: their number of pixels does not show it."""
    if image.format in ("JPEG", "MPO") and _scans(data) > MAX_SCANS:
        raise InvalidInput(f"the JPEG image has more than {MAX_SCANS} scans; save it as a baseline JPEG")
    if image.format == "TIFF":
        tile = image.tag_v2.get(TILE_WIDTH, 0) * image.tag_v2.get(TILE_LENGTH, 0)
        if tile > max(MAX_TILE_PIXELS, 2 * image.width * image.height):
            raise InvalidInput("the TIFF image has tiles much larger than itself; save it without tiles")


def _scans(data: bytes) -> int:
    """How many scans a JPEG has, up to one above `MAX_SCANS`. Counted exactly only where it may be too many."""
    count = data.count(b"\xff\xda")
    if count <= MAX_SCANS:  # two such bytes may stand in metadata too, or in a film behind the image, by chance
        return count
    count, position = 0, 2
    while count <= MAX_SCANS and (marker := _MARKER.search(data, position)) and marker[1] != b"\xd9":
        count += marker[1] == b"\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return count


_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")  # one with a length behind it, or the image's end


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; broken EXIF is ignored, as viewers do."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
    except Exception:  # as many types as there are ways to break it
        return image


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
    if isinstance(transparent := image.info.get("transparency"), int):  # a colour key, of 16 bits too
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
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
