"""A file of any kind -> its pixels, or a sentence that says what it is and what to send instead."""

import re
from collections.abc import Callable

from PIL import Image

from ...errors import InvalidInput
from . import avif, bmp, gif, jpeg, png, tiff, webp
from .file import File, Frame, Picture
from .rendering import rendered

HEADER_SECONDS, DECODE_SECONDS = 1.0, 4.0  # of CPU, at most; honest headers take milliseconds, 40 megapixels a second
READERS: dict[str, Callable[[File], Picture]] = {
    "PNG": png.read,
    "JPEG": jpeg.read,
    "WebP": webp.read,
    "GIF": gif.read,
    "BMP": bmp.read,
    "TIFF": tiff.read,
    "AVIF": avif.read,
}
SEND = "send it as JPEG or PNG"
OTHERS = (  # first bytes -> what they are
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\1\0", "ICO (an icon)"),
    (b"\0\0\2\0", "CUR (a cursor)"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"8BPS", "PSD (Photoshop)"),
    (b"%PDF-", "PDF"),
    (b"%!PS", "PostScript"),
    (b"gimp xcf", "XCF (GIMP)"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?R", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"icns", "ICNS (an icon)"),
    (b"\x8aMNG", "MNG"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
)
RAW = (b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM")  # Panasonic to Minolta
SVG = re.compile(rb"\A(\xef\xbb\xbf)?\s*<(svg|\?xml.*<svg|!--.*<svg|!DOCTYPE svg)", re.DOTALL | re.IGNORECASE)
BRANDS = {  # ISO base media: of the file type box
    "AVIF": (b"avif", b"avis"),
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"heif"),
}


def decode(data: bytes, max_bytes: int, max_pixels: int) -> Frame:
    """The first frame as a viewer shows it, upright, on white (`docs/design.md`, "Colours").

    (H, W, 3) uint8 of sRGB, or the same as PIL's "RGB": `np.asarray` makes one of both.

    Raises:
        InvalidInput: not an image that is read here, broken, cut, HDR, too thin, or too large (seen before decoding).
    """
    if len(data) > max_bytes:
        raise InvalidInput(f"the image file has {len(data)} bytes; at most {max_bytes} are allowed")
    kind = _kind(data)
    file = File(data, max_pixels, HEADER_SECONDS)
    picture = _read(file, kind)
    file.check_size(picture.size)
    file.allow(DECODE_SECONDS)
    try:
        return rendered(picture)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"the {kind} image cannot be decoded; is the file truncated or damaged?") from error


def _read(file: File, kind: str) -> Picture:
    try:
        return READERS[kind](file)
    except InvalidInput:
        raise
    except Image.DecompressionBombError as error:
        raise InvalidInput(f"the image is far above {file.max_pixels} pixels; at most so many are allowed") from error
    except Exception as error:  # Pillow's plugins and ours raise many types on hostile headers
        raise InvalidInput(f"the {kind} image's header cannot be read; is the file damaged?") from error


def _kind(data: bytes) -> str:
    """The format, by content and never by name.

    Raises:
        InvalidInput: another one, which the sentence names if it is known.
    """
    if data.startswith(png.MAGIC):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    raw = data.startswith(RAW) or data[8:10] == b"CR" or data[4:12] == b"ftypcrx " or data[6:14] == b"HEAPCCDR"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")) and not raw:
        return "TIFF"
    if data.startswith(b"BM"):
        return "BMP"
    if data[4:8] == b"ftyp":
        brands = {data[at : at + 4] for at in range(8, min(int.from_bytes(data[:4]), 256), 4)}
        for kind, known in BRANDS.items():
            if not raw and brands & {*known}:
                if kind == "AVIF":
                    return kind
                raise InvalidInput(f"this is an image in HEIC (HEIF), which is not read here: {SEND}")
    if raw:
        raise InvalidInput(f"this is a camera's raw file, which is not read here: {SEND}")
    if data[4:8] == b"ftyp" or data[:4] == b"\x1aE\xdf\xa3" or (data[:4] == b"RIFF" and data[8:12] == b"AVI "):
        raise InvalidInput("this is a video; single images are served: send one frame as PNG, JPEG or WebP")
    for first, name in OTHERS:
        if data.startswith(first):
            raise InvalidInput(f"this is an image in {name}, which is not read here: {SEND}")
    if SVG.search(data[:4096]):
        raise InvalidInput(f"this is a drawing in SVG, which is not read here: {SEND}")
    raise InvalidInput(
        f"this is not an image this server reads ({', '.join(READERS)}): send a file's bytes, or in JSON their base64"
    )
