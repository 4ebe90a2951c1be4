"""What a file's numbers mean -> sRGB: ICC profiles by LittleCMS, and profiles made of primaries and a curve.

Sources: ICC.1:2022 (profiles), ITU-T H.273 (code points of cICP and nclx), PNG 3 (gAMA, cHRM). And Chromium 156, which
decides what H.273 and PNG leave open. The curve of BT.709 is a display's (BT.1886, 2.4), as is BT.601's and BT.2020's.
"""

import struct
from hashlib import sha256
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ...errors import InvalidInput

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
MOVES = 2  # levels of 255; a profile that moves no colour further is sRGB
KEPT = 64  # transforms
SPACES = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}  # ICC's colour space -> PIL's mode
HDR = {16: "PQ", 18: "HLG"}  # H.273's transfer characteristics
Curve = tuple[float, float, float, float, float]  # (g, a, b, c, d): (a x + b)^g from d on, c x below

D65 = (0.3127, 0.3290)
# H.273, table 2: x and y of red, green, blue and white.
PRIMARIES: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), D65),  # BT.709, sRGB
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), (0.310, 0.316)),  # BT.470 M
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), D65),  # BT.601, 625 lines
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),  # BT.601, 525 lines
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),  # SMPTE 240M
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), (0.310, 0.316)),  # film
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),  # BT.2020
    10: ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (1 / 3, 1 / 3)),  # XYZ
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),  # DCI P3
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),  # Display P3
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), D65),  # EBU 3213
}


def power(exponent: float) -> Curve:
    return (exponent, 1.0, 0.0, 0.0, 0.0)


SRGB_CURVE: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
# H.273, table 3.
CURVES: dict[int, Curve] = {
    1: power(2.4),
    4: power(2.2),
    5: power(2.8),
    6: power(2.4),
    7: (1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4.0, 0.0913),  # SMPTE 240M
    8: power(1.0),
    11: power(2.4),
    13: SRGB_CURVE,
    14: power(2.4),
    15: power(2.4),
    17: (2.6, (52.37 / 48) ** (1 / 2.6), 0.0, 0.0, 0.0),  # SMPTE ST 428-1
}


def by_code_points(primaries: int, transfer: int) -> bytes | None:
    """The profile of H.273's code points; None where they are unspecified or unknown, which viewers ignore.

    Raises:
        InvalidInput: HDR.
    """
    if transfer in HDR:
        raise _hdr(HDR[transfer])
    if primaries not in PRIMARIES or transfer not in CURVES:
        return None
    return profile(PRIMARIES[primaries], CURVES[transfer])


def _hdr(curve: str) -> InvalidInput:
    return InvalidInput(f"the image is HDR ({curve}); viewers show it each in their own way: convert it to SDR (sRGB)")


def profile(primaries: tuple[tuple[float, float], ...], *curves: Curve) -> bytes:
    """An ICC profile (version 4) of RGB by its primaries (red, green, blue, white: x and y) and one curve or three.

    Raises:
        ValueError: these primaries span no colour space.
    """
    x, y = np.array(primaries, np.float64).T
    if not (y[3] > 0 and np.isfinite([x, y]).all()):
        raise ValueError("white has no luminance")
    corners = np.stack([x, y, 1 - x - y])[:, :3]
    white = np.array([x[3], y[3], 1 - x[3] - y[3]]) / y[3]
    try:
        matrix = corners * np.linalg.solve(corners, white)
    except np.linalg.LinAlgError as error:
        raise ValueError("the primaries lie on a line") from error
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1.0, 0.8249])
    scale = np.diag((bradford @ d50) / (bradford @ white))
    matrix = np.linalg.solve(bradford, scale @ bradford @ matrix)
    tags = {b"wtpt": _xyz(d50), b"rXYZ": _xyz(matrix[:, 0]), b"gXYZ": _xyz(matrix[:, 1]), b"bXYZ": _xyz(matrix[:, 2])}
    for name, curve in zip((b"rTRC", b"gTRC", b"bTRC"), curves * (3 // len(curves)), strict=True):
        tags[name] = b"para" + bytes(4) + struct.pack(">HH", 3, 0) + _fixed(*curve)
    table, content, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(content), len(value))
        content += value
    head = struct.pack(">I4xI4s4s4s12x4s", start + len(content), 0x04400000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return head + bytes(28) + _fixed(*d50) + bytes(48) + table + content


def _xyz(values: NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*values)


def _fixed(*values: float) -> bytes:
    """ICC's s15Fixed16Number."""
    return b"".join(struct.pack(">i", round(min(max(value, -32768.0), 32767.0) * 65536)) for value in values)


_transforms: dict[tuple[bytes, str], ImageCms.ImageCmsTransform | None] = {}


def transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From PIL's mode "L", "RGB" or "CMYK" by this profile to sRGB; kept by the profile's hash.

    None where it would change nothing, or where the profile is broken or not one of this mode: viewers ignore those.

    Raises:
        InvalidInput: the profile says that the image is HDR.
    """
    if (curve := _code_points(icc)[1]) in HDR:
        raise _hdr(HDR[curve])
    key = (sha256(icc).digest(), mode)
    if key not in _transforms:
        if len(_transforms) >= KEPT:
            _transforms.clear()
        _transforms[key] = _made(icc, mode)
    return _transforms[key]


def space(icc: bytes) -> str | None:
    """PIL's mode of the colours that a profile is for."""
    return SPACES.get(icc[16:20])


def _made(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(icc))
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        made = ImageCms.ImageCmsTransform(source, SRGB, mode, "RGB", intent)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode == "CMYK":
        return made
    levels = np.arange(256, dtype=np.uint8) if mode == "L" else np.linspace(0, 255, 18).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(*[levels] * len(mode), indexing="ij"), -1).reshape(1, -1, len(mode))
    cube = Image.fromarray(colours.squeeze(-1) if mode == "L" else colours)
    moved = np.abs(np.asarray(made.apply(cube)).astype(int) - colours).max()
    return made if moved > MOVES else None


def _code_points(icc: bytes) -> tuple[int, int]:
    """The primaries and the transfer of a profile's `cicp` tag (ICC.1:2022); zeros where it has none."""
    count = int.from_bytes(icc[128:132])
    for at in range(132, min(132 + 12 * count, len(icc)), 12):
        if icc[at : at + 4] == b"cicp":
            start = int.from_bytes(icc[at + 4 : at + 8])
            tag = icc[start : start + 12]
            return (tag[8], tag[9]) if len(tag) == 12 else (0, 0)
    return (0, 0)
