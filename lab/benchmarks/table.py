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

from lab.benchmarks import plots
from lab.benchmarks.blocks import BLOCKS, Results, picture
from lab.benchmarks.checkpoints import ROOT
from lab.benchmarks.results import FOLDER, read

PAGES = (ROOT / "docs" / "performance.md", ROOT / "docs" / "reliability.md", ROOT / "README.md")
MARKED = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
app = typer.Typer(add_completion=False, rich_markup_mode=None)


def filled(page: str, results: Results) -> str:
    """The page with every block made anew."""
    return MARKED.sub(lambda marked: marked[1] + BLOCKS[marked[2]](results) + marked[3], page)


@app.command(epilog="Example: python -m lab.benchmarks.table")
def main(results: Annotated[Path, typer.Option(help="Folder of the results.", show_default=False)] = FOLDER) -> None:
    """Write the tables and plots of README.md, docs/performance.md and docs/reliability.md from the results."""
    found = read(results)
    for key, result in found.items():
        if key[0] == "growth":
            plots.growth(result, results / picture(key))
    changed = []
    for page in PAGES:
        before = page.read_text()
        if (after := filled(before, found)) != before:
            page.write_text(after)
            changed.append(page.name)
    print(json.dumps(changed))


if __name__ == "__main__":
    app()
