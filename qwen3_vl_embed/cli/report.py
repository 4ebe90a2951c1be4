"""Evaluate a server: embed pairs of texts and images through it, compute the report, write its files, show its figures.

The figures and the page are `evaluation`'s. Imported by the command alone, because what it needs (scikit-learn,
matplotlib, colour-science) is not installed where only the client is.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
from numpy.typing import NDArray
from rich.text import Text

from qwen3_vl_embed.batches import Stack
from qwen3_vl_embed.cli import terminal
from qwen3_vl_embed.client import Client
from qwen3_vl_embed.contract import ContractError, Endpoints, list_limit
from qwen3_vl_embed.errors import AdapterError
from qwen3_vl_embed.evaluation.captions import read_folder, thumbnail
from qwen3_vl_embed.evaluation.colours import png, read_palette, swatch, xkcd
from qwen3_vl_embed.evaluation.labels import GROUPS
from qwen3_vl_embed.evaluation.page import page
from qwen3_vl_embed.evaluation.pairs import Pairs, check_count, load
from qwen3_vl_embed.evaluation.report import Report, report
from qwen3_vl_embed.evaluation.tsv import tsv
from qwen3_vl_embed.files.errors import SourceError, VectorFileError
from qwen3_vl_embed.files.vectors import replacing
from qwen3_vl_embed.items import Item, writable

STYLES = {"collapsed": "bold red", "narrow": "yellow", "sound": "green"}
WIDE = 100  # characters: what the intervals need


@dataclass(frozen=True)
class Subject:
    """N texts and N images that belong together, and what they are to be called in the report."""

    source: str
    texts: list[Item]
    images: list[Item]
    rgb: NDArray[np.uint8] | None = None
    thumbnails: tuple[str, ...] = ()


def subject(colours: Path | None, images: Path | None) -> Subject:
    """The 949 colours, a CSV file of name,hex, or a folder of images with captions. Raises SourceError."""
    if colours and images:
        raise SourceError("--colours and --images exclude each other.")
    if images:
        pairs = read_folder(images)
        check_count(len(pairs))
        texts = [Item.text(pair.caption, f"the caption of {pair.path}") for pair in pairs]
        files = [Item.image(pair.path) for pair in pairs]
        return Subject(writable(images), texts, files, None, tuple(thumbnail(pair.path) for pair in pairs))
    palette = read_palette(colours) if colours else xkcd()
    check_count(len(palette))
    swatches = [
        Item("image", name, f'the swatch of "{name}"', content=png(swatch(rgb)))
        for name, rgb in zip(palette.names, palette.rgb, strict=True)
    ]
    source = writable(colours or "the 949 XKCD colours")
    return Subject(source, [Item.text(name) for name in palette.names], swatches, palette.rgb)


def embed_pairs(client: Client, endpoints: Endpoints, what: Subject, options: dict[str, Any], batch: int) -> Pairs:
    """Embed both sides, texts first. Raises AdapterError, ItemError, SourceError."""
    try:
        batch = min(batch, list_limit(client.openapi(), endpoints))
    except ContractError as error:
        raise AdapterError(f"{client.url} is no server of the local-provider schema: {error}") from None
    about = {"server": client.url, "model": {}, "options": options, "source": what.source}
    with suppress(AdapterError):  # another's server tells nothing of its model
        about["model"] = client.model()
    items, stack = [*what.texts, *what.images], Stack()
    for results in terminal.progress(client.embed_each(items, batch_size=batch, **options), len(items)):
        stack.add(results)
    vectors = stack.array()
    names = tuple(item.name for item in what.texts)
    return Pairs(names, vectors[: len(names)], vectors[len(names) :], what.rgb, what.thumbnails, about)


def saved_pairs(path: Path, also: object) -> Pairs:
    """The vectors of an earlier report. Raises SourceError; also when something else was asked for beside them."""
    if also:
        raise SourceError("--vectors holds texts, images and options already: leave all others out.")
    return load(path)


def name_of(pairs: Pairs) -> str:
    """The checkpoint's last name where the server tells it, else the server's host and port."""
    checkpoint = pairs.about.get("model", {}).get("checkpoint")
    return Path(checkpoint).name if checkpoint else urlsplit(pairs.about.get("server", "")).netloc or "vectors"


def write(pairs: Pairs, name: str, folder: Path) -> Report:
    """Compute the report and write report.html, .json, .tsv and vectors.npz. Raises VectorFileError."""
    name = writable(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VectorFileError(f"{folder} cannot be written ({error.strerror or error}).") from None
    with replacing(folder / "vectors.npz", pairs.text.nbytes + pairs.image.nbytes) as file:
        pairs.save(file)  # first: they took longest
    found = report(pairs, name)
    written = {
        "report.json": orjson.dumps(found.as_json(), option=orjson.OPT_INDENT_2),
        "report.tsv": tsv(name, len(pairs), found.figures["raw"], found.date).encode(),
        "report.html": page(found).encode(),
    }
    for file_name, content in written.items():
        with replacing(folder / file_name) as file:
            file.write(content)
    return found


def show(report: Report) -> None:
    """The figures, then the verdict: what decides stands last, next to the prompt."""
    table = terminal.table(Text(f"{report.name}: {len(report.pairs)} pairs"))
    table.add_column("", overflow="fold")
    wide = terminal.out.width >= WIDE
    for heading in ("raw", "95 %", "centred", "95 %", "chance") if wide else ("raw", "centred", "chance"):
        table.add_column(heading, justify="right", no_wrap=True)
    for title, labels in GROUPS.items():
        shown = [label for label in labels if label.key in report.figures["raw"]]
        if shown:
            table.add_row(Text(title, "bold"))
        for label in shown:
            cells: list[str | Text] = []
            for kind in ("raw", "centred"):
                figure = report.figures[kind][label.key]
                cells += [label.value(figure), Text(label.interval(figure), "dim")] if wide else [label.value(figure)]
            chance = Text(label.chance(report.figures["raw"][label.key]), "dim")
            table.add_row(f"  {label.words}", *cells, chance)
    terminal.out.print(table)
    if report.pairs.rgb is None:
        terminal.out.print("Colour figures are left out: images with captions have no one colour.")
    terminal.out.print(Text(report.verdict.words, STYLES[report.verdict.kind]))
