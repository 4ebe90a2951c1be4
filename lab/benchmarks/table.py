"""Write the tables and plots from results/*.json into README.md and docs/, between marker comments.

    python -m lab.benchmarks.table

A page holds `<!-- bench: NAME -->` and `<!-- /bench -->`; what stands between them is made here (blocks.py has the
names), and no figure there is typed by hand. The last line of stdout is a JSON list of the pages that changed.
"""

import json
import re
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

from lab.benchmarks.blocks import BLOCKS, Results, picture, shares
from lab.benchmarks.checkpoints import ROOT
from lab.benchmarks.results import FOLDER, read

PAGES = (ROOT / "docs" / "performance.md", ROOT / "docs" / "reliability.md", ROOT / "README.md")
MARKED = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
SERIES = {
    "batch": "swatches in the batch",
    "side": "side of one square image, pixels",
    "words": "colour names in one text",
}
app = typer.Typer(add_completion=False, rich_markup_mode=None)


def filled(page: str, results: Results) -> str:
    """The page with every block made anew."""
    return MARKED.sub(lambda marked: marked[1] + BLOCKS[marked[2]](results) + marked[3], page)


def plot(result: dict, path: Path) -> None:
    """One panel for each series: seconds, the time at this machine's peak, and MiB at the peak, all logarithmic."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (series, label) in zip(figure.subplots(1, len(SERIES)), SERIES.items(), strict=True):
        rows = [row for row in result["figures"]["rows"] if row["series"] == series]
        values = [row["value"] for row in rows]
        axes.loglog(values, [row["seconds"] for row in rows], "o-", color="C0", label="seconds")
        axes.loglog(values, [row["ceiling_s"] for row in rows], ":", color="C0", label="at the measured peak rate")
        memory = axes.twinx()
        mebibytes = [max(row["peak_bytes"] / 2**20, 0.1) for row in rows]
        memory.loglog(values, mebibytes, "s--", color="C1", label="peak MiB (right)")
        axes.set(xlabel=label, xticks=values, xticklabels=values)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        if series == "batch":
            axes.legend(handles=[*axes.lines, *memory.lines], fontsize=8)
    figure.suptitle(f"{result['checkpoint']} on {result['hardware']['device']}")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def bars(result: dict, path: Path) -> None:
    """A bar for each pass of `split`: its parts, as shares of its time."""
    rows = result["figures"]["split"][::-1]  # the first on top
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['what']}: {row['items']} in {1e3 * row['seconds']:.3g} ms" for row in rows]
    left = [0.0] * len(rows)
    for parts in zip(*map(shares, rows), strict=True):
        (name, *_), widths = zip(*parts, strict=True)
        drawn = axes.barh(names, widths, left=left, label=name, color="0.85" if name == "no kernel" else None)
        axes.bar_label(drawn, [f"{width:.0%}" if width > 0.03 else "" for width in widths], label_type="center")
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.set(xlim=(0, 1), xticks=[])
    figure.legend(loc="outside lower center", ncols=len(left), frameon=False)
    figure.suptitle(f"{result['checkpoint']} on {result['hardware']['device']}: where a pass' time goes")
    figure.savefig(path, dpi=120, metadata={"Software": None})


@app.command(epilog="Example: python -m lab.benchmarks.table")
def main(results: Annotated[Path, typer.Option(help="Folder of the results.", show_default=False)] = FOLDER) -> None:
    """Write the tables and plots of README.md, docs/performance.md and docs/reliability.md from the results."""
    found = read(results)
    for key, result in found.items():
        if key[0] == "growth":
            plot(result, results / picture(key))
        if "split" in result["figures"]:
            bars(result, results / picture(key))
    changed = []
    for page in PAGES:
        before = page.read_text()
        if (after := filled(before, found)) != before:
            page.write_text(after)
            changed.append(page.name)
    print(json.dumps(changed))


if __name__ == "__main__":
    app()
