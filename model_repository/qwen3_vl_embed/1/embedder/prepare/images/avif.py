"""AVIF: Pillow's libavif decodes it, after its boxes have been read: true sizes, and what its colours are.

The extension is called, not the plugin, which would hold the frame twice and use every core.

Source: ISO/IEC 14496-12 and 23008-12 (boxes), AV1 Bitstream Specification 5.5 (sequence header), ITU-T H.273.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL._avif import AvifDecoder

from ...errors import InvalidInput
from . import colour
from .file import File, Picture

SEQUENCE_HEADER = 1  # a type of OBU
MOST_COPIES = 4  # the pixels of all items together, over the largest image: colour, alpha, a thumbnail, a gain map
DEFAULTS = {2: 1}  # unspecified primaries are sRGB's
VIDEO = dict.fromkeys((1, 2, 6, 14, 15), 13)  # curves that browsers take for sRGB's in AVIF, though not in PNG
Points = tuple[int, int]  # H.273's primaries and transfer; 2 is unspecified


class Stream(NamedTuple):
    """What an AV1 sequence header says."""

    size: tuple[int, int]
    points: Points


def read(file: File) -> Picture:
    """The primary item, which is an animation's first frame too.

    Raises:
        InvalidInput: too large, HDR, or damaged.
    """
    try:
        meta = dict(_boxes(file, dict(_boxes(file, memoryview(file.data)))[b"meta"][4:]))
        version, primary = meta[b"pitm"][0], meta[b"pitm"][4:]
        item = int.from_bytes(primary[: 4 if version else 2])
        streams = {number: list(_streams(file, content)) for number, content in _items(file, meta)}
        described = _colours(file, meta, item)
    except (KeyError, IndexError) as error:
        raise InvalidInput("the AVIF image is truncated or damaged: its boxes cannot be read") from error
    sizes = [stream.size for found in streams.values() for stream in found]
    for size in sizes:
        file.check_size(size)
    if sum(width * height for width, height in sizes) > MOST_COPIES * file.max_pixels:
        raise InvalidInput("the AVIF image holds many more pixels than it shows; save it anew")
    # libavif would decode the track of an animation ("avis").
    decoder = AvifDecoder(file.data[:8] + b"avif" + file.data[12:], "auto", 1)
    size, _, _, profile, _, turned, _ = decoder.get_info()
    file.check_size(size)
    if not profile:
        primaries, transfer = described or next((stream.points for stream in streams.get(item, [])), (2, 2))
        profile = colour.by_code_points(DEFAULTS.get(primaries, primaries), VIDEO.get(transfer, transfer))
    return Picture(size, partial(_load, [decoder], size), profile, turned)  # irot and imir; EXIF says nothing in AVIF


def _load(decoders: list[AvifDecoder], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The decoder goes before the frame is rendered: it holds the planes."""
    frame: bytes = decoders.pop().get_frame(0)[0]
    return np.frombuffer(frame, np.uint8).reshape(size[1], size[0], -1)


def _boxes(file: File, content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    while at + 8 <= len(content):
        file.check_time()
        size, kind, head = int.from_bytes(content[at : at + 4]), bytes(content[at + 4 : at + 8]), 8
        if size == 1:
            size, head = int.from_bytes(content[at + 8 : at + 16]), 16
        end = at + size if size else len(content)
        if end < at + head:
            return
        yield kind, content[at + head : end]
        at = end


class _Numbers:
    """Big-endian numbers, one behind the other. Raises IndexError where the content ends."""

    def __init__(self, content: memoryview) -> None:
        self.content, self.at = content, 0

    def take(self, size: int) -> int:
        self.at += size
        if self.at > len(self.content):
            raise IndexError("the box ends early")
        return int.from_bytes(self.content[self.at - size : self.at])


def _items(file: File, meta: dict[bytes, memoryview]) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of each item: iloc says where it lies, in the file or in idat."""
    numbers = _Numbers(meta[b"iloc"])
    version = numbers.take(1)
    numbers.take(3)
    sizes = numbers.take(2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    wide = 4 if version == 2 else 2
    for _ in range(numbers.take(wide)):
        file.check_time()
        number = numbers.take(wide)
        source = meta[b"idat"] if version and numbers.take(2) & 15 == 1 else memoryview(file.data)
        numbers.take(2)
        base = numbers.take(base_size)
        extents = []
        for _ in range(numbers.take(2)):
            numbers.take(index_size if version else 0)
            start, length = base + numbers.take(offset_size), numbers.take(length_size)
            extents.append(source[start : start + length if length else len(source)])
        yield number, extents[0] if len(extents) == 1 else memoryview(b"".join(extents))


def _colours(file: File, meta: dict[bytes, memoryview], item: int) -> Points | None:
    """What the item's own colr box says, if it is of the kind nclx."""
    properties = dict(_boxes(file, meta[b"iprp"]))
    all_of_them = list(_boxes(file, properties[b"ipco"]))
    numbers = _Numbers(properties[b"ipma"])
    version, flags = numbers.take(1), numbers.take(3)
    for _ in range(numbers.take(4)):
        file.check_time()
        number = numbers.take(4 if version else 2)
        wide = 2 if flags & 1 else 1
        own = [numbers.take(wide) & (0x7FFF if wide == 2 else 0x7F) for _ in range(numbers.take(1))]
        for kind, content in (all_of_them[index - 1] for index in own if index and number == item):
            if kind == b"colr" and bytes(content[:4]) == b"nclx":
                return int.from_bytes(content[4:6]), int.from_bytes(content[6:8])
    return None


def _streams(file: File, content: memoryview) -> Iterator[Stream]:
    """Every sequence header in an item, if it is one of AV1."""
    at = 0
    while at < len(content) and not content[at] & 0x81:  # forbidden and reserved bits
        file.check_time()
        kind, extended, sized = content[at] >> 3 & 15, content[at] >> 2 & 1, content[at] >> 1 & 1
        at += 1 + extended
        length = 0
        for shift in range(0, 56 if sized else 0, 7):  # leb128
            length |= (content[at] & 127) << shift
            at += 1
            if content[at - 1] < 128:
                break
        end = at + length if sized else len(content)
        if kind == SEQUENCE_HEADER:
            yield _sequence_header(content[at:end])
        at = end


def _sequence_header(content: memoryview) -> Stream:
    bits = iter(f"{int.from_bytes(content[:64].tobytes().ljust(64, bytes(1))):0512b}")

    def take(count: int) -> int:
        return int("".join(next(bits) for _ in range(count)) or "0", 2)

    profile, _, reduced = take(3), take(1), take(1)
    if reduced:
        take(5)
    else:
        delay = 0
        model = 0
        if take(1):  # timing
            take(64)
            if take(1):  # equal pictures: uvlc
                zeros = 0
                while zeros < 32 and not take(1):
                    zeros += 1
                take(zeros)
            if model := take(1):
                delay = take(5) + 1
                take(42)
        display = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if model and take(1):
                take(2 * delay + 1)
            if display and take(1):
                take(4)
    wide, high = take(4) + 1, take(4) + 1
    size = (take(wide) + 1, take(high) + 1)
    if not reduced and take(1):
        take(7)
    take(3)
    if not reduced:
        take(4)
        order = take(1)
        take(2 * order)
        force = 2 if take(1) else take(1)
        if force and not take(1):
            take(1)
        take(3 * order)
    take(3)
    deep = take(1)
    if profile == 2 and deep:
        take(1)
    if profile != 1:
        take(1)
    return Stream(size, (take(8), take(8)) if take(1) else (2, 2))
