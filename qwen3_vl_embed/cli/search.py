"""The work of the commands `index` and `search`: to a terminal, to a pipe, to a page."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow.compute as pc
import typer
from rich.table import Table
from rich.text import Text

from qwen3_vl_embed.cli import terminal
from qwen3_vl_embed.cli.app import installed
from qwen3_vl_embed.errors import ItemError
from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.files.vectors import check_folder, check_place
from qwen3_vl_embed.items import Item
from qwen3_vl_embed.search.index import Index, build, to_faiss, to_lancedb
from qwen3_vl_embed.search.page import Page, Server
from qwen3_vl_embed.search.queries import Query, Searcher, swatch


def make_index(sources: Sequence[Path], output: Path, faiss: Path | None, lancedb: Path | None) -> None:
    """Raises SourceError, of what is no source, and of what an export needs; VectorFileError."""
    check_folder(output)
    if faiss:
        check_place(faiss)
    if lancedb:
        check_folder(lancedb)
    with terminal.err.status("indexing …"), installed("index", "search"):
        index = build(sources, output)
    how = f"approximate, recall of the first ten {index.ann['recall']:.3f}" if index.ann else "exact"
    terminal.remark(f"{len(index):,} vectors of {index.dimension} numbers in {output}; search is {how}.")
    with installed("index --faiss", "search"):
        if faiss:
            to_faiss(index, faiss)
    with installed("index --lancedb", "lancedb"):
        if lancedb:
            to_lancedb(index, lancedb)


def query(
    index: Index,
    text: str | None,
    image: Path | None,
    colour: str | None,
    like: str | None,
    without: str,
    words: float,
    centred: bool,
) -> Query:
    """Raises SourceError for what cannot be one."""
    if sum(each is not None for each in (image, colour, like)) > 1:
        raise SourceError("One of --image, --colour and --like.")
    if not (text or "").strip() and image is None and colour is None and like is None:
        raise SourceError('What is to be found? qwen3-vl-embed search "dusty teal", or --page.')
    try:
        picture: Any = Item.image(image).read() if image else swatch(colour) if colour else None
    except (ItemError, ValueError) as error:
        raise SourceError(str(error)) from None
    row = pc.index(index.rows["id"], like).as_py() if like is not None else None
    if row == -1:
        raise SourceError(f"The index has no row {like}.")
    return Query(text or "", picture, row, without, words, centred)


def show(searcher: Searcher, asked: Query, count: int, exact: bool) -> None:
    """A table, or JSON lines in a pipe. Raises AdapterError."""
    found = searcher.search(asked, count, exact)
    told = searcher.index.rows.select(["id", "kind", "item"])
    rows = [told.slice(hit.row, 1).to_pylist()[0] for hit in found.hits]
    if not sys.stdout.isatty():
        for row, hit, percentile in zip(rows, found.hits, found.percentiles, strict=True):
            typer.echo(orjson.dumps(row | {"cosine": hit.cosine, "percentile": percentile}))
        return
    table = Table("cosine", "percentile", "id", "", box=None, header_style="dim")
    for row, hit, percentile in zip(rows, found.hits, found.percentiles, strict=True):
        above = "" if percentile is None else f"{percentile:.1f}"
        item = "" if row["item"] == row["id"] else str(row["item"])
        table.add_row(f"{hit.cosine:.3f}", above, Text(str(row["id"])), Text(terminal.one_line(item)))
    terminal.out.print(table)


def show_duplicates(index: Index, least: float) -> None:
    """A JSON line for each group: the ids."""
    for rows in index.duplicates(least):
        typer.echo(orjson.dumps([index.rows["id"][row].as_py() for row in rows]))


def serve(searcher: Searcher, host: str, port: int) -> None:
    """Until Ctrl-C. Raises SourceError where nobody can listen."""
    try:
        server = Server((host, port), Page(searcher))
    except OSError as error:
        raise SourceError(
            f"{host}:{port} cannot be listened at ({error.strerror}): name another --port or --host."
        ) from None
    with server:
        terminal.remark(f"Searching {len(searcher.index):,} rows at {server.url} (stop: Ctrl-C)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
