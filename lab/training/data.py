"""What the colour checkpoint is trained on: names, composed names and swatches, as the served sequences.

Swatches come in every size, shape and file format that is served. They go through the embedder's own decoding, resizing
and rendering, so that training and serving cannot differ.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from embedder.prepare import images
from embedder.prepare.images import Patches
from embedder.prepare.prompts import PROMPTS
from embedder.prepare.renderer import Renderer
from embedder.prepare.sequence import Sequence
from lab.training.architecture import PATCH, SWATCH_PIXELS
from lab.training.compositions import Composition
from qwen3_vl_embed.evaluation.colours import Palette, delta_e, lab_to_rgb, rgb_to_lab

EOL = PROMPTS["eol"]  # the served recipe
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# (smallest, largest) area: the checkpoint's own, smaller on request, larger by the server's setting; and how often.
PIXEL_BOUNDS = ((SWATCH_PIXELS, SWATCH_PIXELS), (1024, SWATCH_PIXELS), (128 * 128, 128 * 128), (256 * 256, 256 * 256))
BOUNDS_SHARE = (0.87, 0.08, 0.04, 0.01)
MAX_NOISE = 16.0  # standard deviation, in 8-bit levels
GROUP = 16  # swatches of the pool that share one size
NEIGHBOURS = 8  # how many of the nearest names count as hard to tell from a name


@dataclass(frozen=True)
class Batch:
    """Texts, images, and how far apart what they stand for is: (texts, images); one unit is one e-fold of target."""

    texts: list[Sequence]
    images: list[Sequence]
    distances: np.ndarray


def swatch_file(
    rgb: np.ndarray, size: tuple[int, int], file_format: str, noise: float, rng: np.random.Generator
) -> bytes:
    """One colour as an encoded file of (width, height) pixels, with Gaussian noise of that standard deviation."""
    pixels = np.broadcast_to(rgb.astype(float), (size[1], size[0], 3))
    if noise:
        pixels = pixels + rng.normal(0, noise, pixels.shape)
    buffer = BytesIO()
    quality = {"quality": int(rng.integers(40, 96))} if file_format in ("JPEG", "WEBP") else {}
    Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(buffer, file_format, **quality)
    return buffer.getvalue()


def patches_of(file: bytes, bounds: tuple[int, int]) -> Patches:
    """What the vision tower sees of an image file within (smallest, largest) pixel area."""
    image = images.decode(file, max_bytes=len(file), max_pixels=10**7)
    return images.to_patches(images.resize(image, PATCH, *bounds), PATCH)


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """(width, height): any area up to 160,000 pixels; half of them square, the others of any ratio up to 200."""
    side = np.exp(rng.uniform(0, np.log(400)))
    stretch = np.exp(rng.uniform(-0.5, 0.5) * np.log(150)) if rng.random() < 0.5 else 1.0
    width, height = max(1, round(side * stretch)), max(1, round(side / stretch))
    return min(width, 200 * height), min(height, 200 * width)


class SwatchPool:
    """Swatches of random colours, encoded, decoded and cut once, drawn from ever after.

    `GROUP` of them share one size (not the format, not the noise), so that a batch holds few different shapes.
    Attention takes one call for each.
    """

    def __init__(self, groups: int, rng: np.random.Generator) -> None:
        self._rgb = rng.integers(0, 256, (groups, GROUP, 3), dtype=np.uint8)
        self._rgb[:, 0] = self._rgb[:, 0, :1]  # a grey in each, which uniform sampling all but misses
        self._lab = rgb_to_lab(self._rgb)
        self._patches = [self._draw(colours, rng) for colours in self._rgb]

    def _draw(self, colours: np.ndarray, rng: np.random.Generator) -> list[Patches]:
        size, bounds = random_size(rng), PIXEL_BOUNDS[rng.choice(len(PIXEL_BOUNDS), p=BOUNDS_SHARE)]
        noise = rng.uniform(0, MAX_NOISE, GROUP) * (rng.random(GROUP) < 0.5)
        formats = rng.choice(FORMATS, GROUP)
        return [
            patches_of(swatch_file(rgb, size, str(file_format), sigma, rng), bounds)
            for rgb, file_format, sigma in zip(colours, formats, noise, strict=True)
        ]

    def sample(self, groups: int, rng: np.random.Generator) -> tuple[list[Patches], np.ndarray]:
        """Patches and their colours, CIELAB (groups * GROUP, 3)."""
        drawn = rng.choice(len(self._patches), groups, replace=False)
        return [patches for group in drawn for patches in self._patches[group]], self._lab[drawn].reshape(-1, 3)


def text_sequence(renderer: Renderer, text: str) -> Sequence:
    return Sequence(renderer.render(EOL, None, text))


def image_sequence(renderer: Renderer, patches: Patches) -> Sequence:
    return Sequence(renderer.render(EOL, None, None, patches.tokens), patches)


class Sampler:
    """Draws batches: names and composed names with a swatch of each, and swatches of random colours."""

    def __init__(
        self, palette: Palette, composed: list[Composition], pool: SwatchPool, renderer: Renderer, seed: int
    ) -> None:
        self._names = np.array([*palette.names, *(composition.name for composition in composed)])
        self._rgb = np.concatenate([palette.rgb, lab_to_rgb(np.array([composition.lab for composition in composed]))])
        self._lab = rgb_to_lab(self._rgb)
        self._survey, self._pool, self._renderer = len(palette), pool, renderer
        self._neighbours = delta_e(palette.lab, palette.lab).argsort(axis=1)[:, 1 : NEIGHBOURS + 1]
        self._rng = np.random.default_rng(seed)

    def batches(self, pairs: int, composed: int, groups: int) -> Iterator[Batch]:
        """Endless batches of 2 * `pairs` + `composed` names with their swatches, and `groups` of the pool beside them.

        A pair is a name of the survey and one that is hard to tell from it: they learn to differ by standing together.
        """
        while True:
            names = self._rng.choice(self._survey, pairs, replace=False)
            neighbours = self._neighbours[names, self._rng.integers(0, NEIGHBOURS, pairs)]
            others = self._rng.integers(self._survey, len(self._names), composed)
            rows = np.concatenate([names, neighbours, others])
            drawn, drawn_lab = self._pool.sample(groups, self._rng)
            patches = [self._swatch(rgb) for rgb in self._rgb[rows]] + drawn
            yield Batch(
                [text_sequence(self._renderer, self._variant(str(name))) for name in self._names[rows]],
                [image_sequence(self._renderer, patch) for patch in patches],
                delta_e(self._lab[rows], np.concatenate([self._lab[rows], drawn_lab])),
            )

    def _swatch(self, rgb: np.ndarray) -> Patches:
        """A name's swatch as most are asked for: square; every second one noisy."""
        rows = columns = 2 * images.MERGE
        pixels = np.tile(rgb, (rows * columns, PATCH * PATCH))
        if self._rng.random() < 0.5:
            noise = self._rng.standard_normal(pixels.shape, dtype=np.float32) * self._rng.uniform(0, MAX_NOISE)
            pixels = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
        return Patches(pixels, (rows, columns))

    def _variant(self, name: str) -> str:
        """A name as people write it; more often than not as it is."""
        written = (name.capitalize(), name.title(), name.upper(), f" {name}", f"{name} ", name.replace(" ", "-"))
        return name if self._rng.random() < 0.6 else str(self._rng.choice(written))


def tokenizer_corpus(names: Iterable[str]) -> list[str]:
    """What the tokenizer learns its merges from: the names in the common spellings, and the frame of each prompt."""
    frame = "system\nuser\nassistant\nSummary above sentence in one word:\nSummary above image in one word:\n"
    spelled = [[name, name, f" {name}", name.capitalize(), name.title(), name.upper()] for name in names]
    return [text for spellings in spelled for text in spellings] + [frame] * 100
