"""Print what a tiny checkpoint knows, measured through the served code: the embedder, from files and strings.

Of colours: do the 949 names find their swatches? Is the first name of any swatch a near colour? Do names that training
never saw land on the right side of what they are composed of? Of shapes: do phrases find their pictures, and which of
number, colour and shape is mistaken? The last line of stdout is one JSON document.
"""

import json
from collections.abc import Iterator
from itertools import cycle, product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from colour.difference import delta_E_CIE2000
from PIL import Image
from rich.console import Console
from rich.table import Table

from embedder import Embedder, EmbedderConfig, EmbedInput
from lab.benchmarks.subject import vectors
from lab.training.compositions import Composer, Composition, split
from lab.training.data import FORMATS, MAX_NOISE, swatch_file
from lab.training.shapes import PHRASES, draw
from lab.training.train import FOLDERS, TASKS, Name
from qwen3_vl_embed.evaluation.colours import Palette, lab_to_rgb, png, rgb_to_lab, swatch, xkcd
from qwen3_vl_embed.evaluation.pairs import Pairs
from qwen3_vl_embed.evaluation.report import values
from qwen3_vl_embed.evaluation.retrieval import cosine, ranks
from qwen3_vl_embed.evaluation.space import raw

FOLDER = FOLDERS / TASKS[Name.COLOURS].folder
SIZES = ((1, 1), (16, 16), (64, 64), (100, 300), (244, 244), (1024, 768), (3, 90), (640, 48))  # width, height
RETRIEVAL = (
    *(f"{direction}_recall_{k}" for direction in ("text_to_image", "image_to_text") for k in (1, 10)),
    "matched_mean", "unmatched_mean",
)  # fmt: skip
NEAR = 10.0  # CIEDE2000: the same colour to most people who name it
SEED = 20  # other swatches than training's
app = typer.Typer(add_completion=False)


def texts(embedder: Embedder, names: tuple[str, ...] | list[str]) -> np.ndarray:
    return vectors(embedder, [EmbedInput(text=name) for name in names])


def swatches(embedder: Embedder, rgb: np.ndarray) -> np.ndarray:
    """Vectors of solid 244x244 PNG swatches, the benchmark's, of uint8 (N, 3) colours."""
    return vectors(embedder, [EmbedInput(image=png(swatch(colour))) for colour in rgb])


def first_name_distances(embedder: Embedder, palette: Palette, names: np.ndarray, count: int) -> np.ndarray:
    """CIEDE2000 between each of `count` random swatches and the name that ranks first for it: float64 (count,).

    Sizes and formats take turns, every second swatch is noisy. `names`: the palette's vectors (N, D).
    """
    rng = np.random.default_rng(SEED)
    rgb = rng.integers(0, 256, (count, 3), dtype=np.uint8)
    kinds = list(product(SIZES, FORMATS, (0.0, 1.0)))
    files = [
        swatch_file(colour, size, file_format, noisy * rng.uniform(0, MAX_NOISE), rng)
        for colour, (size, file_format, noisy) in zip(rgb, cycle(kinds), strict=False)
    ]
    images = vectors(embedder, [EmbedInput(image=file) for file in files])
    first = palette.lab[cosine(images, names).argmax(axis=1)]
    return delta_E_CIE2000(rgb_to_lab(rgb), first)


def sides(embedder: Embedder, composed: list[Composition], palette: Palette, images: np.ndarray) -> dict[str, float]:
    """Where composed names land, as shares of them (see the checkpoint's card for the wording).

    `above_opposite`: the meant colour's swatch ranks above the swatch as far from the base the other way.
    `above_base`: it ranks above the base's own swatch. `nearest_moved`: the palette's swatch that ranks first lies
    on the meant side of the base in CIELAB. `nearest_near`: and within twice `NEAR` of the meant colour.
    """
    names = texts(embedder, [c.name for c in composed])
    target, opposite, base = (
        lab_to_rgb(np.array([getattr(c, field) for c in composed])) for field in ("lab", "opposite", "base")
    )
    scores = [(names * swatches(embedder, rgb)).sum(axis=1) for rgb in (target, opposite, base)]
    nearest = palette.lab[cosine(names, images).argmax(axis=1)]
    meant, start = rgb_to_lab(target), rgb_to_lab(base)
    return {
        "above_opposite": float((scores[0] > scores[1]).mean()),
        "above_base": float((scores[0] > scores[2]).mean()),
        "nearest_moved": float((((nearest - start) * (meant - start)).sum(axis=1) > 0).mean()),
        "nearest_near": float((delta_E_CIE2000(nearest, meant) <= 2 * NEAR).mean()),
    }


def found(names: tuple[str, ...], texts: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """The report's figures of (N, D) and (N, D), those of `RETRIEVAL`."""
    return {name: value for name, value in values(raw(Pairs(names, texts, images))).items() if name in RETRIEVAL}


def measure(embedder: Embedder, colours: int = 1000) -> dict:
    """Every figure of the colour checkpoint's card, as one JSON-able document."""
    palette = xkcd()
    names, images = texts(embedder, palette.names), swatches(embedder, palette.rgb)
    distances = first_name_distances(embedder, palette, names, colours)
    _, held_out = split(Composer(palette).all())
    return {
        "retrieval": found(palette.names, names, images),
        "random_colours": {"swatches": colours, "near": float((distances <= NEAR).mean()),
                           "median": float(np.median(distances))},
        "held_out": {"names": len(held_out), **sides(embedder, held_out, palette, images)},
    }  # fmt: skip


def measure_shapes(embedder: Embedder, draws: int = 5) -> dict:
    """Every figure of the shape checkpoint's card; each draw is a new picture of every phrase, and figures are means.

    `held_out`: R@1 of the phrases that training never saw, among all. `first`: of a picture's first phrase, how often
    each part is right; chance is one in so many as there are.
    """
    rng = np.random.default_rng(SEED)
    names, held_out = tuple(map(str, PHRASES)), np.array([phrase.held_out for phrase in PHRASES])
    parts = np.array([(phrase.number, phrase.colour, phrase.shape) for phrase in PHRASES])
    phrases, measured = texts(embedder, names), []
    for _ in range(draws):
        files = [png(Image.fromarray(draw(phrase, rng))) for phrase in PHRASES]
        pictures = vectors(embedder, [EmbedInput(image=file) for file in files])
        cosines = cosine(phrases, pictures)
        right = (parts[cosines.argmax(axis=0)] == parts).mean(axis=0)
        measured.append(
            found(names, phrases, pictures)
            | {"held_out_text_to_image": (ranks(cosines)[held_out] == 1).mean(),
               "held_out_image_to_text": (ranks(cosines.T)[held_out] == 1).mean()}
            | dict(zip(("first_number", "first_colour", "first_shape"), right, strict=True))
        )  # fmt: skip
    return {name: float(np.mean([each[name] for each in measured])) for name in measured[0]}


def rows(figures: dict, of: str = "") -> Iterator[tuple[str, str]]:
    """(what, value) as people read them."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from rows(value, f"{name}: ")
        else:
            yield (of + name).replace("_", " "), f"{value:.4g}"


@app.command(epilog="Example: python -m lab.training.measure checkpoints/qwen3-vl-color-tiny --colours 200")
def main(
    checkpoint: Annotated[Path | None, typer.Argument(help="A folder; left out, the task's that ships.")] = None,
    task: Annotated[Name, typer.Option(help="What it is to know.")] = Name.COLOURS,
    colours: Annotated[int, typer.Option(min=1, help="How many random swatches to try.")] = 1000,
) -> None:
    """Measure a tiny checkpoint on the CPU, as it is served."""
    folder = checkpoint or FOLDERS / TASKS[task].folder
    embedder = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))
    figures = measure(embedder, colours) if task is Name.COLOURS else measure_shapes(embedder)
    table = Table("figure", "value", title=str(folder))
    for row in rows(figures):
        table.add_row(*row)
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    app()
