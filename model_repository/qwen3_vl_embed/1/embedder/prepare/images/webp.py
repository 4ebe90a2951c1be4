"""WebP: the first frame alone, decoded by torchvision's libwebp.

Pillow's decoder is one for animations. It keeps two screens and copies each frame, 16 bytes a pixel, and does not say
what no frame covers. Source: RFC 9649 (the container and the lossless stream), RFC 6386 (the lossy stream).
"""

import struct
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_webp

from ...errors import InvalidInput
from .file import File, Picture

ANIMATION, PROFILE, ALPHA = 0x02, 0x20, 0x10  # flags of VP8X
Parts = dict[bytes, memoryview]  # of each kind the first one's content


def read(file: File) -> Picture:
    """The first frame on its screen. EXIF does not turn it, and an animation's profile is not used: as in Chromium.

    Raises:
        InvalidInput: too large, or without a picture.
    """
    parts = _parts(file, memoryview(file.data)[12:])
    header = parts.get(b"VP8X", memoryview(b""))
    if len(header) < 10:
        size = _size(parts)
        file.check_size(size)
        return Picture(size, partial(_load, file.data))
    screen = (_three(header, 4) + 1, _three(header, 7) + 1)
    file.check_size(screen)
    if not header[0] & ANIMATION:
        profile = bytes(parts[b"ICCP"]) if b"ICCP" in parts and header[0] & PROFILE else None
        return Picture(screen, partial(_load, file.data, opaque=not header[0] & ALPHA), profile)
    frame = parts.get(b"ANMF", memoryview(b""))
    if len(frame) < 16:
        raise _damaged()
    x, y, width, height = 2 * _three(frame, 0), 2 * _three(frame, 3), _three(frame, 6) + 1, _three(frame, 9) + 1
    if x + width > screen[0] or y + height > screen[1]:
        raise _damaged()
    return Picture(screen, partial(_load, _still(_parts(file, frame[16:]), width, height)), corner=(x, y))


def _damaged() -> InvalidInput:
    return InvalidInput("the WebP image is truncated or damaged: its first frame cannot be read")


def _three(content: memoryview, at: int) -> int:
    return int.from_bytes(content[at : at + 3], "little")


def _parts(file: File, content: memoryview) -> Parts:
    found: Parts = {}
    at = 0
    while at + 8 <= len(content):
        file.check_time()
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        found.setdefault(bytes(content[at : at + 4]), content[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return found


def _size(parts: Parts) -> tuple[int, int]:
    """Of a file that is nothing but a picture, as its stream says."""
    if b"VP8 " in parts and len(lossy := parts[b"VP8 "]) >= 10:
        width, height = struct.unpack("<HH", lossy[6:10])
        return width & 0x3FFF, height & 0x3FFF
    if b"VP8L" in parts and len(lossless := parts[b"VP8L"]) >= 5:
        bits = int.from_bytes(lossless[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise _damaged()


def _still(parts: Parts, width: int, height: int) -> bytes:
    """A frame as a file of its own; libwebp refuses it if its stream is of another size."""
    header = struct.pack("<B3x", ALPHA) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    content = b"WEBP" + _part(b"VP8X", header)
    content += b"".join(_part(kind, parts[kind]) for kind in (b"ALPH", b"VP8 ", b"VP8L") if kind in parts)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _part(kind: bytes, content: bytes | memoryview) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _load(data: bytes, opaque: bool = False) -> NDArray[np.uint8]:
    mode = ImageReadMode.RGB if opaque else ImageReadMode.UNCHANGED
    pixels = decode_webp(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode)  # (3 or 4, H, W), channels last
    frame: NDArray[np.uint8] = pixels.permute(1, 2, 0).numpy()
    return frame
