"""The search page over colours: names, swatches and a few hundred generated pictures, by the tiny checkpoint.

Example: python -m lab.demo [--port 8009] [--no-open]   (`make demo`)
"""

import os
import webbrowser
from pathlib import Path
from shutil import rmtree
from socket import create_server
from threading import Timer
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw

from lab.benchmarks import services
from lab.benchmarks.checkpoints import ROOT, TINY
from qwen3_vl_embed.cli.app import sentences
from qwen3_vl_embed.cli.collection import bulk, search
from qwen3_vl_embed.cli.search import make_index
from qwen3_vl_embed.evaluation.colours import Palette, xkcd
from qwen3_vl_embed.files.errors import SourceError

PLACE = ROOT / ".cache" / "demo"
SIDE, PICTURES = 244, 400
SHAPES = ("disc", "square", "stripes", "fade", "hills")

app = typer.Typer(add_completion=False)


def draw(shape: str, front: tuple[int, ...], back: tuple[int, ...]) -> Image.Image:
    """A picture of two colours; of the first there is more."""
    image = Image.new("RGB", (SIDE, SIDE), back)
    pen = ImageDraw.Draw(image)
    match shape:
        case "disc":
            pen.ellipse((12, 12, SIDE - 12, SIDE - 12), front)
        case "square":
            pen.rectangle((30, 30, SIDE - 30, SIDE - 30), front)
        case "stripes":
            for left in range(0, SIDE, 40):
                pen.rectangle((left, 0, left + 27, SIDE), front)
        case "hills":
            pen.polygon([(0, 90), (70, 40), (140, 110), (SIDE, 50), (SIDE, SIDE), (0, SIDE)], front)
        case _:
            way = np.linspace(0, 1, SIDE)[:, None, None] ** 2
            pixels = (1 - way) * np.array(front) + way * np.array(back)
            image = Image.fromarray(np.broadcast_to(pixels, (SIDE, SIDE, 3)).round().astype(np.uint8))
    return image


def pictures(folder: Path, palette: Palette) -> None:
    """A swatch of each colour, and PICTURES of two colours, named by what they show."""
    rng = np.random.default_rng(0)
    for name, rgb in zip(palette.names, palette.rgb, strict=True):
        Image.new("RGB", (SIDE, SIDE), tuple(rgb)).save(folder / f"{name.replace('/', ' ')}.png")
    for number in range(PICTURES):
        front, back = rng.choice(len(palette), 2, replace=False)
        shape = SHAPES[number % len(SHAPES)]
        title = f"{shape} of {palette.names[front]} and {palette.names[back]}".replace("/", " ")
        draw(shape, tuple(palette.rgb[front]), tuple(palette.rgb[back])).save(folder / f"{title}.png")


@app.command()
def main(
    port: Annotated[int, typer.Option(help="Where the page is.", min=1, max=65535)] = 8009, open: bool = True
) -> None:
    """Draw, embed, index, and serve the page until Ctrl-C."""
    with sentences():
        serve(port, open)


def serve(port: int, open: bool) -> None:
    """Raises SourceError where the port is taken: before another demo's files are."""
    try:
        create_server(("127.0.0.1", port)).close()
    except OSError as error:
        told = f"127.0.0.1:{port} cannot be listened at ({os.strerror(error.errno or 0)})"
        raise SourceError(f"{told}: name another port, as in `python -m lab.demo --port 8010`.") from None
    place = PLACE / str(port)
    rmtree(place, ignore_errors=True)
    (place / "pictures").mkdir(parents=True)
    palette = xkcd()
    pictures(place / "pictures", palette)
    (place / "names.txt").write_text("".join(f"{name}\n" for name in palette.names))
    with services.running(str(TINY), "auto") as server:
        for source in ("pictures", "names.txt"):
            try:
                bulk(str(place / source), place / f"vectors of {source}", url=[server.ours])
            except typer.Exit as ended:
                if ended.exit_code:
                    raise
        make_index([place / "vectors of pictures", place / "vectors of names.txt"], place / "index", None, None)
        if open:
            Timer(1, webbrowser.open, (f"http://127.0.0.1:{port}/?text=dusty+teal",)).start()
        search(index=place / "index", page=True, port=port, url=server.ours)


if __name__ == "__main__":
    app()
