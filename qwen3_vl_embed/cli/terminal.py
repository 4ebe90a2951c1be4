"""What the commands show: progress, tables, colour chips, errors. Results on stdout, everything else on stderr."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, TypeVar

import rich.progress
from rich import box
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text, TextType

from qwen3_vl_embed.serving.console import Console

if TYPE_CHECKING:  # `--help` does without NumPy
    from qwen3_vl_embed.files.sources import Skipped

out = Console()
err = Console(stderr=True)

ROWS_SHOWN = 20
Batch = TypeVar("Batch", bound=Sized)
Thing = TypeVar("Thing")


class Rate(ProgressColumn):
    """Items in a second, over the last seconds."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="cyan")


def progress(
    batches: Iterable[Batch], total: int | Callable[[], int | None], failures: Callable[[], int] = lambda: 0
) -> Iterator[Batch]:
    """Passes the batches on and moves a bar on stderr, which is gone at the end; no bar where stderr is no terminal.

    `total`: asked again and again while it is None; `failures`: how many there are by now.
    """
    failed = TextColumn("[red]{task.fields[failed]}", justify="right")
    columns = [TextColumn("Embedding"), BarColumn(), MofNCompleteColumn(), Rate(), failed, TimeRemainingColumn()]
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=total if isinstance(total, int) else None, failed="")
        for batch in batches:
            bar.advance(task, len(batch))
            if callable(total) and bar.tasks[0].total is None:
                bar.update(task, total=total())
            yield batch
            if count := failures():
                bar.update(task, failed=f"{count:,} failed")


def track(what: Iterable[Thing], name: str) -> Iterable[Thing]:
    """With a bar on stderr, which is gone at the end; no bar where stderr is no terminal."""
    return rich.progress.track(what, escape(name), console=err, transient=True, disable=not err.is_terminal)


def table(title: TextType | None = None, **settings: Any) -> Table:
    """An empty one, as they all look; `settings` are rich's."""
    return Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, **settings)


def complain(message: str) -> None:
    """Further lines are indented: a line break in a file's name makes no line of ours."""
    err.print(Text.assemble(("Error: ", "bold red"), message.replace("\n", "\n       ")), soft_wrap=True)


def remark(message: str) -> None:
    err.print(Text(one_line(message), style="dim"), soft_wrap=True)


def one_line(text: str) -> str:
    """A line break in a file's name makes no line of ours."""
    return text.replace("\n", "\\n")


def show_skipped(skipped: Sequence["Skipped"]) -> None:
    """What folders held beside images: the first by name."""
    for each in skipped[:ROWS_SHOWN]:
        remark(f"Skipped {each.name}: {each.reason}.")
    if len(skipped) > ROWS_SHOWN:
        remark(f"Skipped {len(skipped) - ROWS_SHOWN} more that are no images.")


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
        case None | "" | []:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case list():
            return ", ".join(map(_said, value))
    return str(value)
