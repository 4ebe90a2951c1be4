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

from lab.benchmarks.blocks import BLOCKS, Results, picture
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


@app.command(epilog="Example: python -m lab.benchmarks.table")
def main(results: Annotated[Path, typer.Option(help="Folder of the results.", show_default=False)] = FOLDER) -> None:
    """Write the tables and plots of README.md, docs/performance.md and docs/reliability.md from the results."""
    found = read(results)
    for key, result in found.items():
        if key[0] == "growth":
            plot(result, results / picture(key))
    changed = []
    for page in PAGES:
        before = page.read_text()
        if (after := filled(before, found)) != before:
            page.write_text(after)
            changed.append(page.name)
    print(json.dumps(changed))


if __name__ == "__main__":
    app()
