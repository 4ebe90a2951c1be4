"""A report's figures as a table in the terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from qwen3_vl_embed.cli import terminal
from qwen3_vl_embed.evaluation.labels import GROUPS
from qwen3_vl_embed.evaluation.report import Report

STYLES = {"collapsed": "bold red", "narrow": "yellow", "sound": "green"}
WIDE = 100  # characters: what the intervals need


def show(report: Report) -> None:
    """The figures, then the verdict: what decides stands last, next to the prompt."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(f"{report.name}: {len(report.pairs)} pairs"))
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
