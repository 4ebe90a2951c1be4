"""Draw the picture of the README: texts, and the swatches that lie nearest to them.

    python -m lab.picture

Text and swatches go through the embedder as they would through the server; the order is that of their cosines.
"""

from pathlib import Path
from typing import Annotated
from xml.sax.saxutils import escape

import numpy as np
import typer

from embedder import Embedder, EmbedderConfig, EmbedInput
from lab.benchmarks.checkpoints import ROOT, TINY
from lab.benchmarks.subject import vectors
from qwen3_vl_embed.evaluation import colours

TEXTS = ("dusty teal", "ripe mango", "very dark moss green", "pale rose", "warm grey", "electric violet")
NEAREST = 16
ROW, CHIP, LEFT, PAD = 40, 28, 190, 16  # pixels
app = typer.Typer(add_completion=False, rich_markup_mode=None)


def nearest(embedder: Embedder, texts: tuple[str, ...]) -> list[list[str]]:
    """For each text the colours (#rrggbb) of its nearest swatches among the 949 of the survey, nearest first."""
    rgb = colours.xkcd().rgb
    images = [EmbedInput(image=colours.png(colours.swatch(each))) for each in rgb]
    found = vectors(embedder, [EmbedInput(text=text) for text in texts] + images)
    order = np.argsort(-found[: len(texts)] @ found[len(texts) :].T, axis=1)[:, :NEAREST]
    return [["#" + bytes(rgb[index]).hex() for index in row] for row in order]


def svg(texts: tuple[str, ...], found: list[list[str]]) -> str:
    """On a white card, so that it is the same on a light page and on a dark one."""
    width, height = LEFT + NEAREST * (CHIP + 6) + PAD, len(texts) * ROW + 2 * PAD
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' font-family="system-ui, sans-serif" font-size="15">',
        "<title>Texts, and the swatches nearest to them</title>",
        f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff" stroke="#d0d7de"/>',
    ]
    for row, (text, chips) in enumerate(zip(texts, found, strict=True)):
        top = PAD + row * ROW + (ROW - CHIP) // 2
        lines.append(f'<text x="{PAD}" y="{top + 20}" fill="#1f2328">{escape(text)}</text>')
        lines += [
            f'<rect x="{LEFT + place * (CHIP + 6)}" y="{top}" width="{CHIP}" height="{CHIP}" rx="4" fill="{chip}"'
            ' stroke="#000000" stroke-opacity="0.15"/>'
            for place, chip in enumerate(chips)
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


@app.command(epilog="Example: python -m lab.picture --output docs/search.svg")
def main(
    checkpoint: Annotated[str, typer.Option(help="A folder or a hub id.")] = str(TINY),
    output: Annotated[Path, typer.Option(help="The file to write.")] = ROOT / "docs" / "search.svg",
) -> None:
    """Draw what is found for a few texts."""
    embedder = Embedder.load(EmbedderConfig(checkpoint=checkpoint))
    output.write_text(svg(TEXTS, nearest(embedder, TEXTS)))
    print(f"wrote {output}")


if __name__ == "__main__":
    app()
