"""Print what a colour checkpoint knows, measured through the served code: the embedder, from files and strings.

Three questions: do the 949 names find their swatches? Is the first name of any swatch a near colour? Do names that
training never saw land on the right side of what they are composed of? The last line of stdout is one JSON document.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import cycle, product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from embedder import Embedder, EmbedderConfig, EmbedInput
from lab.benchmarks.subject import vectors
from lab.training.compositions import Composer, Composition, split
from lab.training.data import FORMATS, MAX_NOISE, swatch_file
from qwen3_vl_embed.evaluation.colours import Palette, delta_e, lab_to_rgb, png, rgb_to_lab, swatch, xkcd
from qwen3_vl_embed.evaluation.retrieval import cosine, retrieval

FOLDER = Path(__file__).parents[2] / "checkpoints" / "qwen3-vl-color-tiny"
SIZES = ((1, 1), (16, 16), (64, 64), (100, 300), (244, 244), (1024, 768), (3, 90), (640, 48))  # width, height
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
    return delta_e_rows(rgb_to_lab(rgb), first)


def delta_e_rows(lab: np.ndarray, other: np.ndarray) -> np.ndarray:
    """CIEDE2000 of row i against row i: float64 (N,)."""
    return np.array([delta_e(a[None], b[None])[0, 0] for a, b in zip(lab, other, strict=True)])


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
        "nearest_near": float((delta_e_rows(nearest, meant) <= 2 * NEAR).mean()),
    }


def measure(embedder: Embedder, colours: int = 1000) -> dict:
    """Every figure of the card, as one JSON-able document."""
    palette = xkcd()
    names, images = texts(embedder, palette.names), swatches(embedder, palette.rgb)
    distances = first_name_distances(embedder, palette, names, colours)
    _, held_out = split(Composer(palette).all())
    return {
        "retrieval": asdict(retrieval(names, images)),
        "random_colours": {"swatches": colours, "near": float((distances <= NEAR).mean()),
                           "median": float(np.median(distances))},
        "held_out": {"names": len(held_out), **sides(embedder, held_out, palette, images)},
    }  # fmt: skip


def rows(figures: dict) -> Iterator[tuple[str, str]]:
    """(what, value) as people read them."""
    found, colours, held_out = figures["retrieval"], figures["random_colours"], figures["held_out"]
    for direction in ("text_to_image", "image_to_text"):
        for k, share in found[direction].items():
            yield f"R@{k}, {direction.replace('_', ' ')}, 949 names", f"{share:.3f}"
    yield "mean cosine distance, matched", f"{found['matched']:.3f}"
    yield "mean cosine distance, unmatched", f"{found['unmatched']:.3f}"
    yield f"first name within CIEDE2000 {NEAR:g} of {colours['swatches']} random swatches", f"{colours['near']:.1%}"
    yield "median CIEDE2000 of that first name", f"{colours['median']:.1f}"
    for what, share in list(held_out.items())[1:]:
        yield f"{held_out['names']} held-out compositions: {what.replace('_', ' ')}", f"{share:.0%}"


@app.command(epilog="Example: python -m lab.training.measure checkpoints/qwen3-vl-color-tiny --colours 200")
def main(
    checkpoint: Annotated[Path, typer.Argument(help="A Qwen3-VL checkpoint folder.")] = FOLDER,
    colours: Annotated[int, typer.Option(min=1, help="How many random swatches to try.")] = 1000,
) -> None:
    """Measure a colour checkpoint on the CPU, as it is served."""
    figures = measure(Embedder.load(EmbedderConfig(checkpoint=str(checkpoint), device="cpu")), colours)
    table = Table("figure", "value", title=str(checkpoint))
    for row in rows(figures):
        table.add_row(*row)
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    app()
