"""The 949 XKCD colour names, CIELAB and CIEDE2000, solid swatches.

`data/xkcd_colors.csv` is the XKCD colour survey's result (https://xkcd.com/color/rgb.txt, public domain, CC0 1.0).
Order and spelling are those of matplotlib's `XKCD_COLORS`, which the benchmark uses too.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import colour
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen3_vl_embed.evaluation import FloatArray
from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.files.sources import csv_table
from qwen3_vl_embed.pictures import encoded

XKCD = Path(__file__).parent / "data" / "xkcd_colors.csv"
SWATCH = (244, 244)  # width, height in pixels: the benchmark's
png = encoded


@dataclass(frozen=True)
class Palette:
    """N named colours; `rgb` is uint8 (N, 3), sRGB."""

    names: tuple[str, ...]
    rgb: NDArray[np.uint8]

    @cached_property
    def lab(self) -> FloatArray:
        """CIELAB of each colour, float64 (N, 3)."""
        return rgb_to_lab(self.rgb)

    def __len__(self) -> int:
        return len(self.names)


def xkcd() -> Palette:
    """The 949 colours of the survey."""
    return read_palette(XKCD)


def read_palette(path: Path) -> Palette:
    """Named colours from a UTF-8 CSV file with the headings name and hex (`#acc2d9`, with or without `#`).

    Raises:
        SourceError: it cannot be read, a heading is missing, or a row has no name or no six-digit colour.
    """
    rows = csv_table(path, "name", "hex")
    for number, row in enumerate(rows, start=1):
        if not row["name"] or not re.fullmatch("#?[0-9a-fA-F]{6}", row["hex"]):
            told = f"not {row['name']!r} and {row['hex']!r}"
            raise SourceError(f"{path}, row {number}: a row is a name and a colour such as #acc2d9, {told}.")
    rgb = [list(bytes.fromhex(row["hex"].removeprefix("#"))) for row in rows]
    return Palette(tuple(row["name"] for row in rows), np.array(rgb, dtype=np.uint8).reshape(-1, 3))


def rgb_to_lab(rgb: NDArray[np.uint8]) -> FloatArray:
    """sRGB, uint8 (..., 3), to CIELAB under D65, float64 (..., 3)."""
    return colour.XYZ_to_Lab(colour.sRGB_to_XYZ(np.asarray(rgb) / 255))


def lab_to_rgb(lab: FloatArray) -> NDArray[np.uint8]:
    """CIELAB (..., 3) to sRGB, uint8 (..., 3); what lies outside sRGB's gamut is clipped channel by channel."""
    return np.round(np.clip(colour.XYZ_to_sRGB(colour.Lab_to_XYZ(lab)), 0, 1) * 255).astype(np.uint8)


def delta_e(lab: FloatArray, other: FloatArray) -> FloatArray:
    """CIEDE2000 of every row of `lab` (N, 3) against every row of `other` (M, 3): float64 (N, M)."""
    return colour.difference.delta_E_CIE2000(lab[:, None], other[None])


def swatch(rgb: NDArray[np.uint8] | tuple[int, int, int]) -> Image.Image:
    """One colour as a solid RGB image, as large as the benchmark's."""
    return Image.new("RGB", SWATCH, tuple(int(value) for value in rgb))
