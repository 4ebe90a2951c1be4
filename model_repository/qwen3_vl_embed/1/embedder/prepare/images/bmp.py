"""BMP, read here: Pillow knows few of its kinds.

Source: Microsoft, BITMAPV5HEADER and its predecessors. What they leave open is as in Chromium 156.
"""

import struct
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInput
from .file import File, Picture

RAW, RLE8, RLE4, MASKS, ALPHA_MASKS = 0, 1, 2, 3, 6  # compressions
KINDS = {1: (RAW,), 2: (RAW,), 4: (RAW, RLE4), 8: (RAW, RLE8), 24: (RAW,)}  # bits a pixel -> compressions that are read
KINDS |= {16: (RAW, MASKS, ALPHA_MASKS), 32: (RAW, MASKS, ALPHA_MASKS)}
USUAL_MASKS = {16: (0x7C00, 0x3E0, 0x1F), 32: (0xFF0000, 0xFF00, 0xFF)}  # red, green, blue
CORE, V3, OS2, V5 = 12, 56, 64, 124  # sizes of headers
EMBEDDED = 0x4D424544  # a colour space
Array = NDArray[np.uint8]


def read(file: File) -> Picture:
    """Raises InvalidInput: too large, truncated, or of a kind that is not read."""
    size = int.from_bytes(file.data[14:18], "little")
    header = file.data[14 : 14 + size]
    if len(header) < CORE or len(header) < min(size, V5):
        raise InvalidInput("the BMP image is truncated: it ends in its header")
    if size == CORE:
        width, height, _, depth = struct.unpack("<4H", header[4:12])
        packing = RAW
    else:
        width, height, _, depth, packing = struct.unpack("<iiHHI", header[4:20].ljust(16, b"\0"))
    if size > V5 or packing not in KINDS.get(depth, ()) or (size == OS2 and packing > RLE4):
        raise InvalidInput(
            f"this is a BMP image of a kind that is not read here ({depth} bits, compression {packing}, a header of "
            f"{size} bytes); save it as PNG"
        )
    pixels = width, abs(height)
    file.check_size(pixels)
    load = partial(_load, file, header, pixels, height < 0, depth, packing)
    return Picture(pixels, load, _profile(file.data, header))


def _load(file: File, header: bytes, size: tuple[int, int], downward: bool, depth: int, packing: int) -> Array:
    data, start = file.data, int.from_bytes(file.data[10:14], "little")
    masks = _masks(data, header, depth, packing) if depth in USUAL_MASKS else ()
    pixels = np.zeros((size[1], size[0], len(masks) or 3), np.uint8)
    target = pixels if downward else pixels[::-1]
    if packing in (RLE4, RLE8):
        _run_lengths(file, start, packing == RLE4, _palette(data, header, depth), target)
    elif masks:
        _masked(_rows(data, start, size, depth).view(f"<u{depth // 8}"), masks, target)
    elif depth == 24:
        target[:] = _rows(data, start, size, depth)[:, : 3 * size[0]].reshape(target.shape)[..., ::-1]
    else:
        _indexed(_rows(data, start, size, depth), depth, _palette(data, header, depth), target)
    return pixels


def _rows(data: bytes, start: int, size: tuple[int, int], depth: int) -> Array:
    """(H, bytes of a row), as they lie in the file."""
    stride = (size[0] * depth + 31) // 32 * 4
    if len(data) < start + stride * size[1] - stride + (size[0] * depth + 7) // 8:
        raise InvalidInput("the BMP image is truncated: its last pixels are missing")
    return np.frombuffer(data[start : start + stride * size[1]].ljust(stride * size[1], b"\0"), np.uint8).reshape(
        size[1], -1
    )


def _palette(data: bytes, header: bytes, depth: int) -> Array:
    """(256, 3) RGB; black where the file has no colour."""
    entry, colours = (3, 0) if len(header) == CORE else (4, int.from_bytes(header[32:36], "little"))
    start = 14 + len(header)
    table = np.frombuffer(data[start : start + entry * min(colours or 2**depth, 256)], np.uint8)
    table = table[: len(table) // entry * entry].reshape(-1, entry)[:, 2::-1]
    return np.vstack([table, np.zeros((256 - len(table), 3), np.uint8)])


def _indexed(rows: Array, depth: int, palette: Array, pixels: Array) -> None:
    shifts = np.arange(8 - depth, -1, -depth, dtype=np.uint8)
    for row, target in zip(rows, pixels, strict=True):
        indices = (row[:, None] >> shifts & np.uint8(2**depth - 1)).ravel()
        target[:] = palette[indices[: len(target)]]


def _masks(data: bytes, header: bytes, depth: int, packing: int) -> tuple[int, ...]:
    """Red, green, blue and alpha, if there is any: they stand in a long header, or behind one of 40 bytes."""
    red, green, blue, alpha = struct.unpack("<4I", data[54:70])
    if packing == RAW and (len(header) < V3 or not (red and green and blue)):
        return USUAL_MASKS[depth]
    return (red, green, blue, alpha) if alpha and (len(header) >= V3 or packing == ALPHA_MASKS) else (red, green, blue)


def _masked(rows: NDArray[Any], masks: tuple[int, ...], pixels: Array) -> None:
    for row, target in zip(rows, pixels, strict=True):
        for channel, mask in enumerate(masks):
            low = mask & -mask or 1
            values = (row[: len(target)] & mask) // low
            target[:, channel] = np.round(values * (255 / max(1, mask // low)))


def _run_lengths(file: File, start: int, half: bool, palette: Array, pixels: Array) -> None:
    """What no run covers stays black."""
    codes = file.data[start:]
    at = x = y = 0

    def put(count: int, values: bytes) -> int:
        indices = np.frombuffer(values, np.uint8)
        if half:
            indices = np.stack([indices >> 4, indices & 15], axis=-1).ravel()
        row = pixels[y, x : x + count] if y < len(pixels) else pixels[:0, 0]
        row[:] = palette[np.resize(indices, count)[: len(row)]]
        return count

    while y < len(pixels):
        file.check_time()
        count, value = codes[at : at + 2]
        at += 2
        if count:
            x += put(count, bytes([value]))
        elif value == 0:
            x, y = 0, y + 1
        elif value == 1:
            return
        elif value == 2:
            x, y = x + codes[at], y + codes[at + 1]
            at += 2
        else:
            length = (value + 1) // 2 if half else value
            x += put(value, codes[at : at + length])
            at += length + length % 2


def _profile(data: bytes, header: bytes) -> bytes | None:
    """The one that version 5 embeds. Version 4's primaries and gamma are ignored, as viewers do."""
    if len(header) < V5 or int.from_bytes(header[56:60], "little") != EMBEDDED:
        return None
    start, length = struct.unpack("<II", header[112:120])
    return data[14 + start : 14 + start + length]
