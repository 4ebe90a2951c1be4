"""What the commands show: progress, tables, colour chips, errors. Results on stdout, everything else on stderr.

Knows rich; does not know HTTP and decides nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from qwen3_vl_embed.cli.sources import Item, Skipped
from qwen3_vl_embed.cli.validation import BASIC_COLOURS, NAMES, Validation
from qwen3_vl_embed.cli.vectors import Embedded
from qwen3_vl_embed.serving.console import Console

out = Console()
err = Console(stderr=True)

ROWS_SHOWN = 20
WIDE = 80  # characters: what the matrix of all names and swatches needs


class Rate(ProgressColumn):
    """Items in a second, over the last seconds."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="cyan")


def progress(batches: Iterable[list[Embedded]], total: int) -> Iterator[list[Embedded]]:
    """Passes the batches on and moves a bar on stderr, which is gone at the end; no bar where stderr is no terminal."""
    columns = [TextColumn("Embedding"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn()]
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=total)
        for batch in batches:
            bar.advance(task, len(batch))
            yield batch


def complain(message: str) -> None:
    """Further lines are indented: a line break in a file's name makes no line of ours."""
    err.print(Text.assemble(("Error: ", "bold red"), message.replace("\n", "\n       ")), soft_wrap=True)


def remark(message: str) -> None:
    err.print(Text(_one_line(message), style="dim"), soft_wrap=True)


def _one_line(text: str) -> str:
    """A line break in a file's name makes no line of ours."""
    return text.replace("\n", "\\n")


def show_skipped(skipped: Sequence[Skipped]) -> None:
    """What folders held beside images: the first by name."""
    for each in skipped[:ROWS_SHOWN]:
        remark(f"Skipped {each.name}: {each.reason}.")
    if len(skipped) > ROWS_SHOWN:
        remark(f"Skipped {len(skipped) - ROWS_SHOWN} more that are no images.")


def show_embedded(embedded: Sequence[Embedded]) -> None:
    """The first numbers and the norm of the first vectors."""
    numbers = 4 if out.width >= WIDE else 2
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    widest = max(12, out.width - 25 - 9 * numbers)
    table.add_column("item", overflow="ellipsis", no_wrap=True, max_width=widest)
    table.add_column("kind")
    table.add_column("embedding", no_wrap=True)
    table.add_column("norm", justify="right")
    for each in embedded[:ROWS_SHOWN]:
        start = "  ".join(f"{value:+.4f}" for value in each.vector[:numbers])
        norm = f"{np.linalg.norm(each.vector):.4f}"
        table.add_row(Text(_shown(each.item, widest)), each.item.kind, f"{start} …", norm)
    out.print(table)
    hidden = f"{len(embedded) - ROWS_SHOWN} more are not shown. " if len(embedded) > ROWS_SHOWN else ""
    remark(f"{hidden}Dimension {len(embedded[0].vector)}. Write vectors to a file with --output vectors.npz.")


def _shown(item: Item, width: int) -> str:
    """A path is cut off at its start: its end tells it from its neighbours."""
    name = _one_line(item.name)
    return name if item.kind == "text" or len(name) <= width else "…" + name[-(width - 1) :]


def show_info(info: Mapping[str, Any]) -> None:
    """Nested objects become indented groups."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for indent, name, value in _lines(info):
        table.add_row("  " * indent + name, Text(value))
    out.print(table)


def _lines(group: Mapping[str, Any], indent: int = 0) -> Iterator[tuple[int, str, str]]:
    for name, value in group.items():
        if isinstance(value, Mapping):
            yield indent, name, ""
            yield from _lines(value, indent + 1)
        else:
            yield indent, name, _said(value)


def _said(value: Any) -> str:
    """A JSON value as a person would write it."""
    match value:
        case None | "":
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case list():
            return ", ".join(map(_said, value))
    return str(value)


def show_validation(validation: Validation) -> None:
    """The cosines of names and swatches, then the checks: what decides stands last, next to the prompt."""
    out.print(_matrix(validation) if out.width >= WIDE else _best_hits(validation))
    table = Table.grid(padding=(0, 2))
    for check in validation.checks:
        mark = Text("ok", "green") if check.passed else Text("FAILED", "bold red")
        table.add_row(mark, Text(check.name), Text(check.detail))
    out.print(table)


def _matrix(validation: Validation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, title="cosine(name, swatch) x 100")
    table.add_column("name", no_wrap=True)
    for name in NAMES:
        table.add_column(_chip(name) if out.color_system else name[:4], justify="right", no_wrap=True)
    table.add_column("best hit", no_wrap=True)
    for name, row in zip(NAMES, validation.cosines, strict=True):
        cells = [Text(f"{100 * value:.0f}", "bold" if value == row.max() else "dim") for value in row]
        table.add_row(_named(name), *cells, _hit(validation, name))
    return table


def _best_hits(validation: Validation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
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
    return Text.assemble(_chip(name), " ", (name, style)) if out.color_system else Text(name)


def _chip(name: str) -> Text:
    red, green, blue = BASIC_COLOURS[name]
    return Text("██", f"rgb({red},{green},{blue})")
