"""The second task, which is not colour: how many of which shape, "two red circles".

Number, colour and shape of 180 phrases. Of every number and colour, one shape is held out: training sees each word, but
not that phrase. Each picture is drawn anew; size, turn, place, shade and background say nothing of the phrase.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from embedder.prepare import images
from embedder.prepare.renderer import Renderer
from lab.training.architecture import PATCH
from lab.training.data import Batch, image_sequence, text_sequence

NUMBERS = ("one", "two", "three", "four", "five")
COLOURS = {
    "red": (214, 40, 40), "yellow": (238, 190, 20), "green": (46, 150, 60), "blue": (35, 85, 200),
    "purple": (135, 50, 160), "black": (25, 25, 25),
}  # fmt: skip
SHAPES = {
    "circle": "circles", "ring": "rings", "triangle": "triangles", "square": "squares", "star": "stars",
    "cross": "crosses",
}  # fmt: skip
SIDE = 96  # pixels: 6x6 patches, 9 language tokens
CELLS = 3  # places along each side, each as large as one token sees; a shape fills at most one of them
ROOM = 0.93  # of a cell, so that no two shapes touch
SHARP = 2  # drawn so many times as large, then reduced
SHADE = 18  # levels by which a colour varies
APART = 10.0  # of two phrases, for each of the three in which they differ: by the loss's e-folds, as good as unrelated

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Phrase:
    """Indices into the three lists."""

    number: int
    colour: int
    shape: int

    def __str__(self) -> str:
        singular = list(SHAPES)[self.shape]
        return f"{NUMBERS[self.number]} {list(COLOURS)[self.colour]} {SHAPES[singular] if self.number else singular}"

    @property
    def held_out(self) -> bool:
        """A Latin square over numbers, colours and shapes."""
        return (self.number + self.colour + self.shape) % len(SHAPES) == 0


PHRASES = [Phrase(*each) for each in product(*map(range, (len(NUMBERS), len(COLOURS), len(SHAPES))))]


def outline(shape: str, turn: float) -> NDArray[np.float64]:
    """Corners (K, 2) within the unit circle, turned by `turn` radians; circles and rings have none of their own."""
    if shape == "cross":
        arm, end = 0.28, 0.96
        quarter = [(arm, end), (arm, arm), (end, arm)]
        corners = np.array([(x * a + y * b, y * a - x * b) for a, b in ((1, 0), (0, 1), (-1, 0), (0, -1))
                            for x, y in quarter])  # fmt: skip
    else:
        count, inner = {"triangle": (3, 1.0), "square": (4, 1.0), "star": (10, 0.42)}.get(shape, (48, 1.0))
        angles = (np.arange(count) + 0.5 * (shape == "square")) * 2 * np.pi / count
        radii = np.where(np.arange(count) % 2, inner, 1.0)
        corners = np.stack([np.sin(angles), -np.cos(angles)], axis=1) * radii[:, None]
    cosine, sine = np.cos(turn), np.sin(turn)
    return corners @ np.array([[cosine, sine], [-sine, cosine]])


def draw(phrase: Phrase, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of it, uint8 (SIDE, SIDE, 3)."""
    shape = list(SHAPES)[phrase.shape]
    ground = tuple(rng.integers(215, 256, 3).tolist())
    canvas = Image.new("RGB", (SIDE * SHARP, SIDE * SHARP), ground)
    pen = ImageDraw.Draw(canvas)
    cell = SIDE * SHARP / CELLS
    for place in rng.choice(CELLS * CELLS, phrase.number + 1, replace=False).tolist():
        radius = cell / 2 * rng.uniform(0.6, ROOM)
        middle = (np.array(divmod(place, CELLS)) + 0.5) * cell + rng.uniform(-1, 1, 2) * (cell / 2 * ROOM - radius)
        shade = np.array(list(COLOURS.values())[phrase.colour]) + rng.integers(-SHADE, SHADE + 1, 3)
        fill = tuple(np.clip(shade, 0, 255).tolist())
        corners = outline(shape, rng.uniform(-0.35, 0.35))
        pen.polygon([tuple(point) for point in (middle + radius * corners).tolist()], fill=fill)
        if shape == "ring":
            pen.polygon([tuple(point) for point in (middle + 0.55 * radius * corners).tolist()], fill=ground)
    return np.asarray(canvas.reduce(SHARP))


class ShapeSampler:
    """Draws batches of the phrases that are not held out, a picture of each."""

    def __init__(self, renderer: Renderer, seed: int) -> None:
        self._renderer, self._rng = renderer, np.random.default_rng(seed)
        self._phrases = [phrase for phrase in PHRASES if not phrase.held_out]

    def batches(self, pairs: int) -> Iterator[Batch]:
        """Endless batches of `pairs` different phrases."""
        while True:
            drawn = self._rng.choice(len(self._phrases), pairs, replace=False)
            phrases = [self._phrases[each] for each in drawn]
            parts = np.array([(phrase.number, phrase.colour, phrase.shape) for phrase in phrases])
            yield Batch(
                [text_sequence(self._renderer, self._variant(phrase)) for phrase in phrases],
                [image_sequence(self._renderer, images.to_patches(draw(phrase, self._rng), PATCH))
                 for phrase in phrases],
                APART * (parts[:, None] != parts[None]).sum(axis=2),
            )  # fmt: skip

    def _variant(self, phrase: Phrase) -> str:
        """A phrase as people write it; more often than not as it is."""
        text = str(phrase)
        if self._rng.random() < 0.6:
            return text
        digits = text.replace(NUMBERS[phrase.number], str(phrase.number + 1))
        return str(self._rng.choice([text.capitalize(), text.title(), text.upper(), digits, f" {text}"]))


@app.command(epilog="Example: python -m lab.training.shapes build/shapes")
def write(
    folder: Annotated[Path, typer.Argument(help="Where to.")],
    seed: Annotated[int, typer.Option(help="Seeds the pictures; training's were of 949.")] = 20,
) -> None:
    """Write a picture of each phrase and captions.csv, for `report --images` and `sweep --images`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "caption"])
        for phrase in PHRASES:
            name = f"{phrase}.png".replace(" ", "-")
            Image.fromarray(draw(phrase, rng)).save(folder / name)
            rows.writerow([name, phrase])


if __name__ == "__main__":
    app()
