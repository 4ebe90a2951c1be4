"""What is embedded: colour names and swatches, texts and pictures of several sizes. Always the same ones.

Pictures are smooth colours with grain, as JPEG files of quality 90: they take a photo's time to decode. There are 32 of
each kind, and larger batches repeat them.
"""

import csv
from functools import cache
from io import BytesIO
from itertools import cycle, islice

import numpy as np
from PIL import Image

from embedder import EmbedInput
from lab.benchmarks.checkpoints import ROOT

PALETTE = ROOT / "qwen3_vl_embed" / "evaluation" / "data" / "xkcd_colors.csv"
SWATCH = (244, 244)  # the colour benchmark's
PHOTOS = ((640, 480), (800, 600), (768, 1024), (1024, 1024), (1920, 1080), (1080, 1920))  # width, height
TWELVE_MEGAPIXELS = (4000, 3000)
DISTINCT = 32
LONG_TEXT_NAMES = 160  # about 512 tokens


@cache
def palette() -> list[tuple[str, str]]:
    """The 949 (name, #rrggbb) of the colour benchmark."""
    with PALETTE.open(encoding="utf-8", newline="") as file:
        return [(row["name"], row["hex"]) for row in csv.DictReader(file)]


def names() -> list[str]:
    return [name for name, _ in palette()]


@cache
def swatch(index: int) -> bytes:
    """A solid PNG of that colour."""
    return _encoded(Image.new("RGB", SWATCH, palette()[index % len(palette())][1]), "PNG")


@cache
def picture(size: tuple[int, int], seed: int) -> bytes:
    """Smooth random colours with grain, `size` pixels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = Image.effect_noise(size, 30).convert("RGB")
    return _encoded(Image.blend(small, grain, 0.15), "JPEG", quality=90)


def _encoded(image: Image.Image, file_format: str, **options: int) -> bytes:
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def text(words: int, index: int = 0) -> str:
    """That many colour names, another start for every index."""
    return ", ".join(islice(cycle(names()), index, index + words))


KINDS = {
    "name": lambda i: EmbedInput(text=names()[i % len(names())]),
    "long text": lambda i: EmbedInput(text=text(LONG_TEXT_NAMES, i)),
    "swatch": lambda i: EmbedInput(image=swatch(i)),
    "512×512": lambda i: EmbedInput(image=picture((512, 512), i % DISTINCT)),
    "1024×1024": lambda i: EmbedInput(image=picture((1024, 1024), i % DISTINCT)),
    "photos": lambda i: EmbedInput(image=picture(PHOTOS[i % len(PHOTOS)], i % DISTINCT)),
}


def batch(kind: str, size: int) -> list[EmbedInput]:
    """`size` inputs of one kind."""
    return [KINDS[kind](i) for i in range(size)]


def mixed(size: int) -> list[EmbedInput]:
    """Names, long texts, swatches and pictures of every size in turn: half texts, half images."""
    turns = ("name", "photos", "name", "swatch", "long text", "photos", "name", "512×512")
    return [KINDS[turns[i % len(turns)]](i) for i in range(size)]


def half_and_half(size: int) -> list[EmbedInput]:
    """Names and swatches in turn."""
    return [KINDS[("name", "swatch")[i % 2]](i // 2) for i in range(size)]
