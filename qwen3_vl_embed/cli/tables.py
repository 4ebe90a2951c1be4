"""Vectors and a validation as tables in the terminal."""

from collections.abc import Sequence

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from qwen3_vl_embed.cli import terminal
from qwen3_vl_embed.cli.validation import BASIC_COLOURS, NAMES, Validation
from qwen3_vl_embed.items import Embedded

WIDE = 80  # characters: what the matrix of all names and swatches needs


def show_embedded(embedded: Sequence[Embedded]) -> None:
    """The first numbers and the norm of the first vectors."""
    numbers = 4 if terminal.out.width >= WIDE else 2
    table = terminal.table()
    widest = max(12, terminal.out.width - 25 - 9 * numbers)
    table.add_column("item", overflow="ellipsis", no_wrap=True, max_width=widest)
    table.add_column("kind")
    table.add_column("embedding", no_wrap=True)
    table.add_column("norm", justify="right")
    for each in embedded[: terminal.ROWS_SHOWN]:
        start = "  ".join(f"{value:+.4f}" for value in each.vector[:numbers])
        norm = f"{np.linalg.norm(each.vector):.4f}"
        name = terminal.one_line(each.item.name)
        if each.item.kind == "image" and len(name) > widest:
            name = "…" + name[-(widest - 1) :]  # a path's end tells it from its neighbours
        table.add_row(Text(name), each.item.kind, f"{start} …", norm)
    terminal.out.print(table)
    hidden = (
        f"{len(embedded) - terminal.ROWS_SHOWN} more are not shown. " if len(embedded) > terminal.ROWS_SHOWN else ""
    )
    terminal.remark(f"{hidden}Dimension {len(embedded[0].vector)}. Write vectors to a file with --output vectors.npz.")


def show_validation(validation: Validation) -> None:
    """The cosines of names and swatches, then the checks: what decides stands last, next to the prompt."""
    terminal.out.print(_matrix(validation) if terminal.out.width >= WIDE else _best_hits(validation))
    table = Table.grid(padding=(0, 2))
    for check in validation.checks:
        mark = Text("ok", "green") if check.passed else Text("FAILED", "bold red")
        table.add_row(mark, Text(check.name), Text(check.detail))
    terminal.out.print(table)


def _matrix(validation: Validation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, title="cosine(name, swatch) x 100")
    table.add_column("name", no_wrap=True)
    for name in NAMES:
        table.add_column(_chip(name) if _has_colours() else name[:4], justify="right", no_wrap=True)
    table.add_column("best hit", no_wrap=True)
    for name, row in zip(NAMES, validation.cosines, strict=True):
        cells = [Text(f"{100 * value:.0f}", "bold" if value == row.max() else "dim") for value in row]
        table.add_row(_named(name), *cells, _hit(validation, name))
    return table


def _best_hits(validation: Validation) -> Table:
    table = terminal.table()
    table.add_column("name", no_wrap=True)
    table.add_column("best hit", no_wrap=True)
    table.add_column("cosine", justify="right")
    for name, row in zip(NAMES, validation.cosines, strict=True):
        table.add_row(_named(name), _hit(validation, name), f"{row.max():.3f}")
    return table


def _hit(validation: Validation, name: str) -> Text:
    best = validation.best(name)
    return _named(best, "green" if best == name else "bold red")


def _named(name: str, style: str = "") -> Text:
    """The name behind its colour, where colours can be shown."""
    return Text.assemble(_chip(name), " ", (name, style)) if _has_colours() else Text(name)


def _has_colours() -> bool:
    """With NO_COLOR a terminal has a colour system, and chips would all be alike."""
    return terminal.out.color_system is not None and not terminal.out.no_color


def _chip(name: str) -> Text:
    red, green, blue = BASIC_COLOURS[name]
    return Text("██", f"rgb({red},{green},{blue})")
