"""Image files of every kind whose colours a viewer decides: made here, most of them by hand, and small.

All but `HDR` are shown by browsers and must look the same here (`test_chromium.py`); those are refused.
"""

import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

from embedder.prepare.images import colour
from tests.bad_inputs import chunk, encoded

PATCHES = [(200, 60, 40), (60, 160, 90), (40, 60, 200), (128, 128, 128), (24, 24, 24), (230, 220, 60)]
PIXELS = np.repeat(np.repeat(np.array(PATCHES, np.uint8).reshape(2, 3, 3), 16, axis=0), 16, axis=1)  # (32, 48, 3)
RGB = Image.fromarray(PIXELS)
GREY = Image.fromarray(np.repeat(np.arange(0, 240, 5, dtype=np.uint8)[None], 32, axis=0))
ALPHA = Image.fromarray(np.dstack([PIXELS, np.repeat(np.arange(0, 240, 5, dtype=np.uint8)[None], 32, axis=0)]))
SIGNATURE = b"\x89PNG\r\n\x1a\n"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3 = colour.profile(colour.PRIMARIES[12], colour.SRGB_CURVE)
LINEAR = colour.profile(colour.PRIMARIES[1], colour.power(1.0))
WIDE = colour.profile(colour.PRIMARIES[9], colour.power(1.8))


def png(image: np.ndarray, depth: int, kind: int, *chunks: bytes, after: bytes = b"", size=None) -> bytes:
    """(H, W) or (H, W, channels) samples of any depth, with chunks before and behind the pixels."""
    rows = image.reshape(len(image), -1)
    if depth < 8:
        bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :].reshape(len(rows), -1)
        packed = np.packbits(bits, axis=-1)
    else:
        packed = rows.astype(f">u{depth // 8}").view(np.uint8).reshape(len(rows), -1)
    width, height = size or (image.shape[1], image.shape[0])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    pixels = zlib.compress(np.hstack([np.zeros((len(rows), 1), np.uint8), packed]).tobytes())
    return SIGNATURE + header + b"".join(chunks) + chunk(b"IDAT", pixels) + after + chunk(b"IEND", b"")


def coloured(*chunks: bytes, after: bytes = b"") -> bytes:
    return png(PIXELS, 8, 2, *chunks, after=after)


def broken(chunk_: bytes) -> bytes:
    """The same with a wrong checksum."""
    return chunk_[:-1] + bytes([chunk_[-1] ^ 1])


def gama(value: int) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", value))


def chrm(*values: int) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *values))


def cicp(*values: int) -> bytes:
    return chunk(b"cICP", bytes(values))


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(profile))


def trns(*values: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def exif(orientation: int) -> bytes:
    return b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HH", orientation, 0) + bytes(4)


def grey_profile(gamma: float) -> bytes:
    """ICC, of grey."""
    curve = b"para" + bytes(4) + struct.pack(">HHi", 0, 0, round(gamma * 65536))
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, len(white), b"kTRC", 156 + len(white), len(curve))
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x3i48x",
        156 + len(white) + len(curve),
        0x04400000,
        b"mntr",
        b"GRAY",
        b"XYZ ",
        b"acsp",
        63190,
        65536,
        54061,
    )
    return head + tags + white + curve


def with_cicp_tag(transfer: int) -> bytes:
    """P3's profile with a tag that says what its curve is, as version 4.4 has it."""
    count, start = int.from_bytes(P3[128:132]), len(P3) + 12
    tags = bytearray(P3[132 : 132 + 12 * count])
    for at in range(0, len(tags), 12):
        tags[at + 4 : at + 8] = struct.pack(">I", int.from_bytes(tags[at + 4 : at + 8]) + 12)
    tags += b"cicp" + struct.pack(">II", start, 12)
    body = (
        P3[4:128]
        + struct.pack(">I", count + 1)
        + tags
        + P3[132 + 12 * count :]
        + b"cicp"
        + bytes(4)
        + bytes([12, transfer, 0, 1])
    )
    return struct.pack(">I", len(body) + 4) + body


# PNG: whose word counts.
P3_CHRM = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
PLTE = chunk(b"PLTE", bytes(sum(PATCHES, ())))
SRGB_CHUNK = chunk(b"sRGB", b"\0")
PNG_COLOURS = {
    "nothing": coloured(),
    **{
        f"gAMA {value}": coloured(gama(value))
        for value in (0, 100, 20000, 43100, 43300, 45455, 47700, 47800, 55000, 10**5, 220000, 2**31 - 1)
    },
    "cHRM alone": coloured(chrm(*P3_CHRM)),
    "gAMA and cHRM": coloured(gama(45455), chrm(*P3_CHRM)),
    "cHRM, then gAMA 1": coloured(chrm(*P3_CHRM), gama(10**5)),
    "cHRM of zeros": coloured(gama(10**5), chrm(*[0] * 8)),
    "cHRM on a line": coloured(gama(10**5), chrm(31270, 32900, *[33333] * 6)),
    "sRGB and gAMA": coloured(gama(10**5), SRGB_CHUNK),
    "sRGB of no intent": coloured(gama(10**5), chunk(b"sRGB", b"\x09")),
    "gAMA twice": coloured(gama(10**5), gama(45455)),
    "gAMA behind the pixels": coloured(after=gama(10**5)),
    "gAMA with a wrong checksum": coloured(broken(gama(10**5))),
    "gAMA too long": coloured(chunk(b"gAMA", struct.pack(">IB", 10**5, 0))),
    "gAMA behind the palette": png(np.arange(6).reshape(2, 3), 8, 3, PLTE, gama(10**5)),
    "gAMA of a palette": png(np.arange(6).reshape(2, 3), 8, 3, gama(10**5), PLTE),
    "gAMA of grey": png(np.asarray(GREY), 8, 0, gama(10**5)),
    "gAMA of alpha": png(np.asarray(ALPHA), 8, 6, gama(10**5)),
    "iCCP": coloured(iccp(P3)),
    "iCCP, linear": coloured(iccp(LINEAR)),
    "iCCP, wide": coloured(iccp(WIDE)),
    "iCCP, sRGB": coloured(iccp(SRGB)),
    "iCCP of alpha": png(np.asarray(ALPHA), 8, 6, iccp(P3)),
    "iCCP and gAMA": coloured(iccp(P3), gama(10**5)),
    "iCCP and sRGB": coloured(SRGB_CHUNK, iccp(P3)),
    "sRGB behind iCCP": coloured(iccp(P3), SRGB_CHUNK),
    "iCCP with a wrong checksum": coloured(broken(iccp(P3)), gama(10**5)),
    "iCCP, cut": coloured(chunk(b"iCCP", b"a\0\0" + zlib.compress(P3)[:-20]), gama(10**5)),
    "iCCP, nonsense": coloured(iccp(b"nonsense" * 30)),
    "iCCP of grey": png(np.asarray(GREY), 8, 0, iccp(grey_profile(1.0))),
    "iCCP of RGB in grey": png(np.asarray(GREY), 8, 0, iccp(LINEAR)),
    "iCCP of grey in RGB": coloured(iccp(grey_profile(1.0))),
    "cICP and iCCP": coloured(iccp(LINEAR), cicp(12, 13, 0, 1)),
    "cICP sRGB and iCCP": coloured(iccp(LINEAR), cicp(1, 13, 0, 1)),
    "cICP unspecified and gAMA": coloured(gama(10**5), cicp(2, 2, 0, 1)),
    "cICP, narrow range": coloured(cicp(12, 13, 0, 0)),
    "cICP too long": coloured(chunk(b"cICP", bytes([12, 13, 0, 1, 0]))),
    "cICP with a wrong checksum": coloured(broken(cicp(12, 13, 0, 1))),
    "cICP behind the pixels": coloured(after=cicp(12, 13, 0, 1)),
    "cICP of grey": png(np.asarray(GREY), 8, 0, cicp(1, 8, 0, 1)),
    **{f"cICP, primaries {value}": coloured(cicp(value, 13, 0, 1)) for value in (*range(14), 22, 200)},
    **{f"cICP, transfer {value}": coloured(cicp(1, value, 0, 1)) for value in (*range(16), 17, 19, 200)},
}

# PNG: colour keys, depths, orientation, animation.
RAMP = np.repeat(np.arange(16)[None], 4, axis=0)
DEEP = PIXELS.astype(np.uint16) * 257 + np.arange(48, dtype=np.uint16)[None, :, None] % 3
KEY16 = tuple(map(int, DEEP[0, 0]))


def fctl(size: tuple[int, int], corner: tuple[int, int] = (0, 0), number: int = 0) -> bytes:
    return chunk(b"fcTL", struct.pack(">5IHHBB", number, *size, *corner, 1, 10, 0, 0))


def fdat(image: np.ndarray, number: int) -> bytes:
    rows = np.hstack([np.zeros((len(image), 1), np.uint8), image.reshape(len(image), -1)])
    return chunk(b"fdAT", struct.pack(">I", number) + zlib.compress(rows.tobytes()))


def actl(frames: int) -> bytes:
    return chunk(b"acTL", struct.pack(">II", frames, 0))


GREEN = np.full((16, 20, 3), (60, 160, 90), np.uint8)
WHOLE_GREEN = np.full((32, 48, 3), (60, 160, 90), np.uint8)
PNG_PICTURES = {
    **{f"grey of {depth} bits": png(RAMP % 2**depth, depth, 0) for depth in (1, 2, 4)},
    **{f"grey of {depth} bits with a key": png(RAMP % 2**depth, depth, 0, trns(1)) for depth in (1, 2, 4)},
    "grey of 4 bits, a key above": png(RAMP, 4, 0, trns(17)),
    "grey of 4 bits, a key far above": png(RAMP, 4, 0, trns(0x0105)),
    "grey with a key": png(np.asarray(GREY), 8, 0, trns(50)),
    "grey with a key above": png(np.asarray(GREY), 8, 0, trns(0x0132)),
    "grey of 16 bits": png(DEEP[..., 0], 16, 0),
    "grey of 16 bits with a key": png(DEEP[..., 0], 16, 0, trns(KEY16[0])),
    "grey of 16 bits, a key beside": png(DEEP[..., 0], 16, 0, trns(KEY16[0] + 100)),
    "RGB with a key": coloured(trns(*PATCHES[1])),
    "RGB with a key above": coloured(trns(*(value + 256 for value in PATCHES[1]))),
    "RGB of 16 bits": png(DEEP, 16, 2),
    "RGB of 16 bits with a key": png(DEEP, 16, 2, trns(*KEY16)),
    "RGB of 16 bits, a key beside": png(DEEP, 16, 2, trns(KEY16[0], KEY16[1], KEY16[2] ^ 64)),
    "alpha of 16 bits": png(np.asarray(ALPHA).astype(np.uint16) * 257, 16, 6),
    "grey and alpha": png(np.dstack([np.asarray(GREY), np.asarray(GREY)[:, ::-1]]), 8, 4),
    "grey and alpha of 16 bits": png(np.dstack([DEEP[..., 0], DEEP[..., 1]]), 16, 4),
    "grey and alpha with a key": png(np.dstack([np.asarray(GREY), np.asarray(GREY)[:, ::-1]]), 8, 4, trns(50)),
    "palette": png(np.arange(6).reshape(2, 3), 8, 3, PLTE),
    "palette of 4 bits": png(np.arange(6).reshape(2, 3), 4, 3, PLTE),
    "palette with alpha": png(np.arange(6).reshape(2, 3), 8, 3, PLTE, chunk(b"tRNS", bytes([0, 128, 255]))),
    "palette with alpha too long": png(np.arange(6).reshape(2, 3), 8, 3, PLTE, chunk(b"tRNS", bytes([0, 128] * 5))),
    "palette, alpha before it": png(np.arange(6).reshape(2, 3), 8, 3, chunk(b"tRNS", bytes([0, 128, 255])), PLTE),
    "a key with a wrong checksum": coloured(broken(trns(*PATCHES[1]))),
    "a key too short": coloured(chunk(b"tRNS", bytes(4))),
    "text with a wrong checksum": coloured(broken(chunk(b"tEXt", b"a\0b"))),
    "an unknown chunk with a wrong checksum": coloured(broken(chunk(b"abCd", b"a\0b"))),
    "text with a wrong checksum behind": coloured(after=broken(chunk(b"tEXt", b"a\0b"))),
    "a time of no length": coloured(chunk(b"tIME", b"")),
    **{f"eXIf {value}": coloured(chunk(b"eXIf", exif(value))) for value in range(10)},
    "eXIf behind": coloured(after=chunk(b"eXIf", exif(6))),
    "eXIf with a wrong checksum": coloured(broken(chunk(b"eXIf", exif(6)))),
    "eXIf twice": coloured(chunk(b"eXIf", exif(1)), chunk(b"eXIf", exif(6))),
    "eXIf with a prefix": coloured(chunk(b"eXIf", b"Exif\0\0" + exif(6))),
    "animation": coloured(actl(2), fctl((48, 32)), after=fctl((20, 16), (4, 4), 1) + fdat(GREEN, 2)),
    "default image outside": coloured(actl(1), after=fctl((48, 32)) + fdat(WHOLE_GREEN, 1)),
    "default image outside, a small frame": coloured(actl(1), after=fctl((20, 16), (28, 8)) + fdat(GREEN, 1)),
    "frames but no animation": coloured(after=fctl((48, 32)) + fdat(WHOLE_GREEN, 1)),
    "animation of no frames": coloured(actl(0), after=fctl((48, 32)) + fdat(WHOLE_GREEN, 1)),
}
GIF_BITS = b"\x02\x02\x4c\x01\0"


def gif(
    screen,
    box,
    pixels: np.ndarray,
    palette: bytes,
    transparent: int | None = None,
    background: int = 0,
    interlaced: bool = False,
) -> bytes:
    """One frame, its codes not compressed: 7 bits each, cleared before the table grows."""
    codes: list[int] = []
    for index in range(0, pixels.size, 100):
        codes += [
            64,
            *pixels.ravel()[index : index + 50].tolist(),
            64,
            *pixels.ravel()[index + 50 : index + 100].tolist(),
        ]
    codes.append(65)
    bits = "".join(f"{code:07b}"[::-1] for code in codes)
    stream = int(bits[::-1], 2).to_bytes((len(bits) + 7) // 8, "little")
    blocks = b"".join(bytes([len(part := stream[at : at + 255])]) + part for at in range(0, len(stream), 255))
    control = b"" if transparent is None else b"\x21\xf9\x04\x01\0\0" + bytes([transparent, 0])
    frame = b"\x2c" + struct.pack("<4H", *box) + (b"\x40" if interlaced else b"\0") + b"\x06" + blocks + b"\0"
    flags = b"\xf5" if palette else b"\x75"
    return b"GIF89a" + struct.pack("<HH", *screen) + flags + bytes([background, 0]) + palette + control + frame + b";"


TABLE = (bytes(sum(PATCHES, ())) + bytes(64 * 3))[: 64 * 3]
INDEX = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3), 8, axis=0), 8, axis=1)  # (16, 24)
GIFS = {
    "whole": gif((24, 16), (0, 0, 24, 16), INDEX, TABLE),
    "small frame": gif((48, 32), (10, 6, 24, 16), INDEX, TABLE),
    "small frame, a background": gif((48, 32), (10, 6, 24, 16), INDEX, TABLE, background=3),
    "small frame, a transparent colour": gif((48, 32), (10, 6, 24, 16), INDEX, TABLE, transparent=1),
    "large frame": gif((10, 10), (0, 0, 24, 16), INDEX, TABLE),
    "frame that leaves the screen": gif((20, 12), (10, 6, 24, 16), INDEX, TABLE),
    "transparent colour": gif((24, 16), (0, 0, 24, 16), INDEX, TABLE, transparent=1),
    "interlaced": gif((24, 16), (0, 0, 24, 16), INDEX, TABLE, interlaced=True),
    "animation": encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(180)]),
}


def webp(kind: bytes, image: Image.Image, **options) -> bytes:
    """One chunk of what Pillow writes, with its size."""
    data = encoded(image, "WEBP", **options)
    at = data.index(kind)
    length = int.from_bytes(data[at + 4 : at + 8], "little")
    return data[at : at + 8 + length + length % 2]


def riff(*parts: bytes) -> bytes:
    content = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def part(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def vp8x(flags: int, size=(48, 32)) -> bytes:
    return part(
        b"VP8X", struct.pack("<I", flags) + (size[0] - 1).to_bytes(3, "little") + (size[1] - 1).to_bytes(3, "little")
    )


def anmf(corner: tuple[int, int], size: tuple[int, int], *parts: bytes) -> bytes:
    numbers = (corner[0] // 2, corner[1] // 2, size[0] - 1, size[1] - 1, 100)
    return part(b"ANMF", b"".join(number.to_bytes(3, "little") for number in numbers) + b"\0" + b"".join(parts))


ANIM = part(b"ANIM", bytes([0, 0, 255, 255]) + bytes(2))  # a red background, which browsers ignore
LOSSLESS, LOSSY = webp(b"VP8L", RGB, lossless=True), webp(b"VP8 ", RGB, quality=90)
SMALL = RGB.crop((0, 0, 20, 16))
WEBPS = {
    "lossless": encoded(RGB, "WEBP", lossless=True),
    "lossy": encoded(RGB, "WEBP", quality=90),
    "alpha": encoded(ALPHA, "WEBP", lossless=True, exact=True),
    "lossy alpha": encoded(ALPHA, "WEBP", quality=90),
    "lossy alpha that the header denies": riff(vp8x(0), webp(b"ALPH", ALPHA), webp(b"VP8 ", ALPHA)),
    "profile": encoded(RGB, "WEBP", lossless=True, icc_profile=P3),
    "profile without its flag": riff(vp8x(0), part(b"ICCP", P3), LOSSLESS),
    "profile behind": riff(vp8x(0x20), LOSSLESS, part(b"ICCP", P3)),
    "profile and alpha": encoded(ALPHA, "WEBP", lossless=True, exact=True, icc_profile=P3),
    "EXIF": riff(vp8x(0x08), LOSSLESS, part(b"EXIF", exif(6))),
    "EXIF with a prefix": riff(vp8x(0x08), LOSSLESS, part(b"EXIF", b"Exif\0\0" + exif(6))),
    "animation": encoded(RGB, "WEBP", lossless=True, save_all=True, append_images=[RGB.rotate(180)]),
    "small frame": riff(vp8x(0x02), ANIM, anmf((10, 6), (20, 16), webp(b"VP8L", SMALL, lossless=True))),
    "small frame, alpha flag": riff(vp8x(0x12), ANIM, anmf((10, 6), (20, 16), webp(b"VP8L", SMALL, lossless=True))),
    "small frame, lossy": riff(vp8x(0x02), ANIM, anmf((10, 6), (20, 16), webp(b"VP8 ", SMALL))),
    "small frame of alpha": riff(
        vp8x(0x12), ANIM, anmf((10, 6), (20, 16), webp(b"VP8L", ALPHA.crop((20, 0, 40, 16)), lossless=True, exact=True))
    ),
    "animation of a profile": riff(vp8x(0x22), part(b"ICCP", P3), ANIM, anmf((0, 0), (48, 32), LOSSLESS)),
}


def bmp(
    pixels: bytes,
    depth: int,
    packing: int = 0,
    *,
    size=(48, 32),
    header: int = 40,
    palette: bytes = b"",
    masks: tuple[int, ...] = (),
    space: int = 0x73524742,
    calibration: bytes = bytes(48),
    profile: bytes = b"",
    colours: int | None = None,
) -> bytes:
    """The rows as they come; masks stand in the header where it is long enough, else behind it."""
    if header == 12:
        info = struct.pack("<IHHHH", 12, *size, 1, depth)
    else:
        info = struct.pack(
            "<IiiHHIIiiII",
            40,
            *size,
            1,
            depth,
            packing,
            len(pixels),
            2835,
            2835,
            len(palette) // 4 if colours is None else colours,
            0,
        )
        info += struct.pack(f"<{len(masks)}I", *masks)
        if header > 40:
            info = info.ljust(56, b"\0") + struct.pack("<I", space) + calibration
            info += struct.pack("<IIII", 4, header + len(palette) + len(pixels), len(profile), 0)
            info = struct.pack("<I", header) + info[4:header]
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + palette + pixels + profile


def rows(values: np.ndarray) -> bytes:
    """The lowest first, padded to four bytes."""
    raw = values.reshape(len(values), -1).view(np.uint8)
    return np.pad(raw, ((0, 0), (0, -raw.shape[1] % 4)))[::-1].tobytes()


def masked(masks: tuple[int, ...], dtype: str, alpha: np.ndarray | None = None) -> bytes:
    channels = [*np.moveaxis(PIXELS, -1, 0), *([] if alpha is None else [alpha])]
    total = np.zeros(PIXELS.shape[:2], dtype)
    for values, mask in zip(channels, masks, strict=False):
        low = mask & -mask
        total |= (np.round(values / 255 * (mask // low)).astype(dtype) * low).astype(dtype)
    return rows(total)


HALF = np.asarray(ALPHA)[..., 3]
BGR = rows(np.ascontiguousarray(PIXELS[..., ::-1]))
QUADS = b"".join(bytes([blue, green, red, 0]) for red, green, blue in PATCHES)
WIDE_INDEX = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3), 16, axis=0), 16, axis=1)
RLE8_RUNS = b"".join(bytes([16, row, 16, row + 1, 16, row + 2, 0, 0]) for row in (3, 0) for _ in range(16)) + b"\0\1"
RLE4_RUNS = (
    b"".join(bytes([16, 17 * row, 16, 17 * row + 17, 16, 17 * row + 34, 0, 0]) for row in (3, 0) for _ in range(16))
    + b"\0\1"
)
RLE_GAPS = bytes([8, 1, 0, 2, 9, 3]) + bytes([5, 2, 0, 4, 1, 2, 3, 4, 0, 0, 12, 5, 0, 1])
V4_P3 = struct.pack(
    "<9i", *(round(value * 2**30) for value in (0.4866, 0.2290, 0.0, 0.2657, 0.6917, 0.0451, 0.1982, 0.0793, 1.0439))
)
BMPS = {
    "24 bits": bmp(BGR, 24),
    "24 bits, downward": bmp(
        b"".join(BGR[at : at + 144] for at in range(len(BGR) - 144, -1, -144)), 24, size=(48, -32)
    ),
    "24 bits, core header": bmp(BGR, 24, header=12),
    "8 bits": bmp(rows(WIDE_INDEX), 8, palette=QUADS),
    "8 bits, too many colours": bmp(rows(WIDE_INDEX), 8, palette=QUADS + bytes(4 * 300)),
    "4 bits": bmp(rows(WIDE_INDEX[:, ::2] * 16 + WIDE_INDEX[:, 1::2]), 4, palette=QUADS),
    "1 bit": bmp(rows(np.packbits(WIDE_INDEX % 2, axis=-1)), 1, palette=QUADS[:8]),
    "1 bit, black and white": bmp(rows(np.packbits(WIDE_INDEX % 2, axis=-1)), 1, palette=bytes([255] * 3 + [0] * 5)),
    "2 bits": bmp(
        rows(
            np.packbits(
                np.unpackbits((WIDE_INDEX % 4).astype(np.uint8)[..., None], axis=-1)[..., 6:].reshape(32, -1), axis=-1
            )
        ),
        2,
        palette=QUADS[:16],
    ),
    "RLE8": bmp(RLE8_RUNS, 8, 1, palette=QUADS),
    "RLE4": bmp(RLE4_RUNS, 4, 2, palette=QUADS),
    "RLE8 with gaps": bmp(RLE_GAPS, 8, 1, palette=QUADS),
    "RLE4 with gaps": bmp(RLE_GAPS, 4, 2, palette=QUADS),
    "16 bits": bmp(masked((0x7C00, 0x3E0, 0x1F), "<u2"), 16),
    "565": bmp(masked((0xF800, 0x7E0, 0x1F), "<u2"), 16, 3, masks=(0xF800, 0x7E0, 0x1F)),
    "4444, V4": bmp(
        masked((0xF00, 0xF0, 0xF, 0xF000), "<u2", HALF), 16, 3, header=108, masks=(0xF00, 0xF0, 0xF, 0xF000)
    ),
    "1555, V4": bmp(
        masked((0x7C00, 0x3E0, 0x1F, 0x8000), "<u2", HALF), 16, 3, header=108, masks=(0x7C00, 0x3E0, 0x1F, 0x8000)
    ),
    "1555, V4, wholly transparent": bmp(
        masked((0x7C00, 0x3E0, 0x1F, 0x8000), "<u2"), 16, 3, header=108, masks=(0x7C00, 0x3E0, 0x1F, 0x8000)
    ),
    "1555, V3": bmp(
        masked((0x7C00, 0x3E0, 0x1F, 0x8000), "<u2", HALF), 16, 3, header=56, masks=(0x7C00, 0x3E0, 0x1F, 0x8000)
    ),
    "32 bits": bmp(masked((0xFF0000, 0xFF00, 0xFF), "<u4"), 32),
    "32 bits, V5, alpha without masks": bmp(masked((0xFF0000, 0xFF00, 0xFF, 0xFF000000), "<u4", HALF), 32, header=124),
    "32 bits, alpha without masks": bmp(masked((0xFF0000, 0xFF00, 0xFF, 0xFF000000), "<u4", HALF), 32),
    "32 bits, V5, empty alpha": bmp(masked((0xFF0000, 0xFF00, 0xFF), "<u4"), 32, header=124),
    "32 bits, V5": bmp(
        masked((0xFF0000, 0xFF00, 0xFF, 0xFF000000), "<u4", HALF),
        32,
        3,
        header=124,
        masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000),
    ),
    "32 bits, V4, ABGR": bmp(
        masked((0xFF, 0xFF00, 0xFF0000, 0xFF000000), "<u4", HALF),
        32,
        3,
        header=108,
        masks=(0xFF, 0xFF00, 0xFF0000, 0xFF000000),
    ),
    "10 bits": bmp(masked((0x3FF00000, 0xFFC00, 0x3FF), "<u4"), 32, 3, masks=(0x3FF00000, 0xFFC00, 0x3FF)),
    "alpha masks behind": bmp(
        masked((0xFF0000, 0xFF00, 0xFF, 0xFF000000), "<u4", HALF), 32, 6, masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    ),
    "V5, profile": bmp(BGR, 24, header=124, space=0x4D424544, profile=P3),
    "V5, profile, 8 bits": bmp(rows(WIDE_INDEX), 8, header=124, palette=QUADS, space=0x4D424544, profile=P3),
    "V5, linked profile": bmp(BGR, 24, header=124, space=0x4C494E4B, profile=b"p3.icc\0"),
    "V4, calibrated": bmp(BGR, 24, header=108, space=0, calibration=V4_P3 + struct.pack("<3I", *[65536] * 3)),
    "V4, calibrated, gamma 2.2": bmp(
        BGR, 24, header=108, space=0, calibration=V4_P3 + struct.pack("<3I", *[144179] * 3)
    ),
    "V4, calibrated, gamma 1/2.2": bmp(
        BGR, 24, header=108, space=0, calibration=V4_P3 + struct.pack("<3I", *[29789] * 3)
    ),
    "V4, calibrated by zeros": bmp(BGR, 24, header=108, space=0),
    "V5, calibrated, gamma 2.2": bmp(
        BGR, 24, header=124, space=0, calibration=V4_P3 + struct.pack("<3I", *[144179] * 3)
    ),
}


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg(image: Image.Image, *segments: bytes, **options) -> bytes:
    data = encoded(image, "JPEG", quality=95, subsampling=0, **options)
    return data[:2] + b"".join(segments) + data[2:]


def icc(profile: bytes, parts: int = 1, order: int = 1) -> list[bytes]:
    size = -(-len(profile) // parts)
    pieces = [profile[at : at + size] for at in range(0, len(profile), size)]
    made = [segment(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, len(pieces)]) + piece) for i, piece in enumerate(pieces)]
    return made[::order]


def app1(*contents: bytes) -> list[bytes]:
    return [segment(0xE1, content) for content in contents]


def adobe(transform: int) -> bytes:
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def without_jfif(data: bytes) -> bytes:
    return data[:2] + data[2 + 2 + int.from_bytes(data[4:6]) :]


PLAIN = jpeg(RGB)
CMYK = Image.merge(
    "CMYK", [band.point(lambda value: 255 - value) for band in RGB.split()] + [Image.new("L", RGB.size, 20)]
)
RESTARTS = jpeg(RGB, restart_marker_rows=1)
NO_TURN = b"Exif\0\0" + exif(6)[:8] + b"\0\0" + bytes(4)
JPEGS = {
    "plain": PLAIN,
    "progressive": jpeg(RGB, progressive=True),
    "restarts": RESTARTS,
    "grey": jpeg(GREY),
    "CMYK": jpeg(CMYK),
    "RGB by Adobe's word": without_jfif(jpeg(RGB, keep_rgb=True)),
    "no end": PLAIN[:-2],
    "progressive, no end": jpeg(RGB, progressive=True)[:-2],
    "half an end": PLAIN[:-1],
    "zeros for an end": PLAIN[:-2] + bytes(20),
    "junk behind": PLAIN + b"junk",
    "junk in the header": jpeg(RGB, segment(0xFE, b"a comment") + b"junk"),
    "junk before the end": PLAIN[:-2] + b"junk" + PLAIN[-2:],
    "a restart too many": PLAIN[:-2] + b"\xff\xd0" + PLAIN[-2:],
    "fill bytes": jpeg(RGB, b"\xff" * 10),
    "profile": jpeg(RGB, *icc(P3)),
    "profile in parts": jpeg(RGB, *icc(P3, 3)),
    "profile in parts, turned round": jpeg(RGB, *icc(P3, 3, -1)),
    "profile with a part missing": jpeg(RGB, *icc(P3, 3)[:2]),
    "profile of sRGB": jpeg(RGB, *icc(SRGB)),
    "profile, linear": jpeg(RGB, *icc(LINEAR)),
    "profile, wide": jpeg(RGB, *icc(WIDE)),
    "profile of grey": jpeg(GREY, *icc(grey_profile(1.0))),
    "profile of RGB in grey": jpeg(GREY, *icc(LINEAR)),
    "profile of grey in RGB": jpeg(RGB, *icc(grey_profile(1.0))),
    "profile, nonsense": jpeg(RGB, *icc(b"nonsense" * 30)),
    **{f"EXIF {value}": jpeg(RGB, *app1(b"Exif\0\0" + exif(value))) for value in range(10)},
    "EXIF, 6 then 1": jpeg(RGB, *app1(b"Exif\0\0" + exif(6), b"Exif\0\0" + exif(1))),
    "EXIF, 1 then 6": jpeg(RGB, *app1(b"Exif\0\0" + exif(1), b"Exif\0\0" + exif(6))),
    "EXIF, none then 6": jpeg(RGB, *app1(NO_TURN, b"Exif\0\0" + exif(6))),
    "EXIF, nonsense then 6": jpeg(RGB, *app1(b"Exif\0\0nonsense", b"Exif\0\0" + exif(6))),
    "EXIF with another padding": jpeg(RGB, *app1(b"Exif\0\xff" + exif(6))),
    "EXIF without a prefix": jpeg(RGB, *app1(exif(6))),
    "EXIF of a long": jpeg(RGB, *app1(b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\x01\0\0\0\x06" + bytes(4))),
    "EXIF of two": jpeg(RGB, *app1(b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x02\0\x06\0\x06" + bytes(4))),
    "XMP": jpeg(
        RGB,
        *app1(
            b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf tiff:Orientation=\"6\"/></x:xmpmeta>"  # noqa: E501
        ),
    ),
}


def avif(image: Image.Image, **options) -> bytes:
    return encoded(image, "AVIF", quality=100, subsampling="4:4:4", **options)


def nclx(primaries: int, transfer: int) -> bytes:
    data = avif(RGB)
    at = data.index(b"nclx") + 4
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


AVIFS = {
    "plain": avif(RGB),
    "4:2:0": encoded(RGB, "AVIF", quality=95, subsampling="4:2:0"),
    "grey": avif(GREY.convert("RGB")),
    "alpha": avif(ALPHA),
    "premultiplied alpha": avif(ALPHA, alpha_premultiplied=True),
    "profile": avif(RGB, icc_profile=P3),
    "profile, linear": avif(RGB, icc_profile=LINEAR),
    "animation": encoded(RGB, "AVIF", quality=100, subsampling="4:4:4", save_all=True, append_images=[RGB.rotate(180)]),
    **{f"turned {value}": avif(RGB, exif=b"Exif\0\0" + exif(value)) for value in range(1, 9)},
    **{f"nclx, primaries {value}": nclx(value, 13) for value in (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 22)},
    **{f"nclx, transfer {value}": nclx(1, value) for value in (*range(9), 13, 14, 15, 17, 19)},
    **{f"nclx, {pair}": nclx(*pair) for pair in ((12, 2), (2, 2), (2, 8), (12, 1), (9, 14), (9, 2), (12, 4))},
}
HDR = {
    "PNG, cICP, PQ": coloured(cicp(9, 16, 0, 1)),
    "PNG, cICP, HLG": coloured(cicp(9, 18, 0, 1)),
    "PNG, iCCP that says PQ": coloured(iccp(with_cicp_tag(16))),
    "JPEG, a profile that says PQ": jpeg(RGB, *icc(with_cicp_tag(16))),
    "WebP, a profile that says HLG": encoded(RGB, "WEBP", lossless=True, icc_profile=with_cicp_tag(18)),
    "AVIF, nclx, PQ": nclx(9, 16),
    "AVIF, nclx, HLG": nclx(9, 18),
}


# What is told from what it is, and what to send instead.
SENTENCES = {
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(64), "HEIC; JPEG"),
    "HEIC of a general brand": (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic" + bytes(64), "HEIC; JPEG"),
    "JPEG XL, bare": (b"\xff\x0a" + bytes(60), "JPEG XL; PNG"),
    "JPEG XL": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "JPEG XL; PNG"),
    "JPEG 2000": (encoded(RGB, "JPEG2000"), "JPEG 2000; PNG"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG; PNG"),
    "SVG of XML": (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>", "SVG; PNG"),
    "ICO": (encoded(RGB, "ICO"), "ICO; PNG"),
    "PSD": (b"8BPS\0\1" + bytes(60), "PSD; PNG"),
    "CR2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(60), "raw; JPEG"),
    "CR3": (b"\0\0\0\x18ftypcrx " + bytes(64), "raw; JPEG"),
    "RAF": (b"FUJIFILMCCD-RAW 0201" + bytes(60), "raw; JPEG"),
    "RW2": (b"IIU\0" + bytes(60), "raw; JPEG"),
    "ORF": (b"IIRO" + bytes(60), "raw; JPEG"),
    "DNG": (encoded(RGB, "TIFF", tiffinfo={50706: b"\1\4\0\0"}), "raw; JPEG"),
    "NEF, a preview first": (encoded(RGB, "TIFF", tiffinfo={254: 1}), "raw; JPEG"),
    "TIFF of 32-bit floats": (encoded(Image.new("F", (8, 8), 2.5), "TIFF"), "outside 0…1"),
    "TIFF of signed integers": (encoded(Image.new("I", (8, 8), 5), "TIFF"), "signed integers"),
    "BMP of JPEG": (bmp(BGR, 24, 4), "BMP; kind; PNG"),
    "AVIF without a still": (b"\0\0\0\x14ftypavis\0\0\0\0avis" + bytes(8), "AVIF"),
}


def large(size: tuple[int, int]) -> dict[str, bytes]:
    """A file of each kind, of one picture that packs well."""
    width, height = size
    x, y = np.arange(width)[None] // 16 % 256, np.arange(height)[:, None] // 16 % 256
    rgb = Image.fromarray(np.dstack(np.broadcast_arrays(x, y, x ^ y)).astype(np.uint8))
    grey, alpha, cmyk = rgb.getchannel(2), rgb.copy(), rgb.convert("CMYK")
    alpha.putalpha(grey)
    deep = np.asarray(grey).astype(np.uint16) * 257
    lzw = {"compression": "tiff_lzw"}
    return {
        "png": encoded(rgb),
        "png, 16 bits": encoded(Image.fromarray(deep)),
        "png, 16 bits, a key": encoded(Image.fromarray(deep), transparency=257),
        "png, 48 bits, a key": png(np.dstack([deep] * 3), 16, 2, trns(257, 257, 257)),
        "png, alpha, a profile": encoded(alpha, icc_profile=P3),
        "png, palette": encoded(rgb.quantize(16), transparency=3),
        "jpeg": encoded(rgb, "JPEG"),
        "jpeg, a profile": encoded(rgb, "JPEG", icc_profile=P3),
        "jpeg, progressive": encoded(rgb, "JPEG", progressive=True),
        "jpeg, cmyk": encoded(cmyk, "JPEG"),
        "jpeg, turned": encoded(rgb, "JPEG", exif=b"Exif\0\0" + exif(6)),
        "webp": encoded(rgb, "WEBP", method=0),
        "webp, alpha": encoded(alpha, "WEBP", method=0),
        "webp, animated": encoded(rgb, "WEBP", method=0, save_all=True, append_images=[rgb.rotate(180)]),
        "gif": encoded(rgb.quantize(16), "GIF"),
        "bmp": encoded(rgb, "BMP"),
        "tiff": encoded(rgb, "TIFF", **lzw),
        "tiff, 16 bits": encoded(Image.fromarray(deep), "TIFF", **lzw),
        "tiff, floats": encoded(Image.fromarray(np.asarray(grey).astype(np.float32) / 255), "TIFF", **lzw),
        "tiff, turned": encoded(rgb, "TIFF", tiffinfo={274: 6}, **lzw),
        "avif": encoded(rgb, "AVIF", speed=10),
        "avif, alpha": encoded(alpha, "AVIF", speed=10),
        "avif, 4:4:4": encoded(rgb, "AVIF", speed=10, subsampling="4:4:4"),
    }
