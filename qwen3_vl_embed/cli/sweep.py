"""Sweep recipes over a checkpoint that is loaded here, without a server. Imported by its command alone: needs torch."""

import json
from pathlib import Path

from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from embedder import EmbedError
from embedder.prepare.prompts import prompt as known_prompt
from qwen3_vl_embed.cli import terminal
from qwen3_vl_embed.cli.checkpoint import load
from qwen3_vl_embed.evaluation.colours import Palette, xkcd
from qwen3_vl_embed.evaluation.heatmap import draw
from qwen3_vl_embed.evaluation.sweep import Row, blocks, ranking, recommended, sweep
from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.files.vectors import check_folder, replacing
from qwen3_vl_embed.serving.console import Console

WIDE = 76  # characters: what all figures need


def run(
    checkpoint: str, prompts: list[str], resolutions: list[int], colours: int | None, folder: Path, console: Console
) -> None:
    """Write sweep.jsonl (which a second run continues) and sweep.png into `folder`; print the table and what to use.

    Raises:
        SourceError: no such checkpoint or prompt.
        VectorFileError: the folder cannot be written.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    palette = xkcd()
    if colours:
        palette = Palette(palette.names[:colours], palette.rgb[:colours])
    try:
        for name in prompts:
            known_prompt(name)
        embedder = load(checkpoint)
        todo = blocks(prompts, [*resolutions] or [None])
        columns = [TextColumn("sweeping"), BarColumn(), MofNCompleteColumn(), TextColumn("inputs")]
        columns += [TimeElapsedColumn(), TimeRemainingColumn()]
        with Progress(*columns, console=terminal.err, disable=not terminal.err.is_terminal) as bar:
            task = bar.add_task("", total=2 * len(palette) * len(todo))
            file = folder / f"sweep-{embedder.checkpoint.fingerprint[:12]}-{len(palette)}.jsonl"
            rows = sweep(embedder, palette, todo, file, lambda count: bar.advance(task, count))
    except EmbedError as error:
        raise SourceError(str(error)) from None
    with replacing(folder / "sweep.png") as picture:
        draw(rows, picture)
    console.print(_table(rows, console.width))
    for what, row in recommended(rows):
        console.print(
            f"{what}: MRR {row.test_mrr:.3f} on the test half; as options of a request:", style="bold", soft_wrap=True
        )
        console.out(json.dumps(row.options()))
    console.print(f"{folder / 'sweep.png'}, {file}", soft_wrap=True)


def _table(rows: list[Row], width: int, most: int = 15) -> Table:
    """All figures in the 80 columns of a pipe; in fewer, the first three: the .jsonl has them all."""
    table = Table(
        title=f"The best {min(most, len(rows))} of {len(rows)} recipes, chosen on one half",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("prompt", overflow="fold")
    for column in ("layer", "pool", "norm", "centred"):
        table.add_column(column, no_wrap=True)
    figures = {
        "MRR\nchosen": "choose_mrr",
        "MRR\ntest": "test_mrr",
        "R@1\ntest": "test_recall_1",
        "dist.\nown": "test_matched",
        "dist.\nothers": "test_unmatched",
        "probe\nR²": "probe",
    }
    figures = dict(list(figures.items())[: 6 if width >= WIDE else 3])
    for column in figures:
        table.add_column(column, justify="right", no_wrap=True)
    for row in ranking(rows)[:most]:
        norm, centred = ("yes" if flag else "no" for flag in (row.final_norm, row.center))
        prompt = row.prompt + (f", {row.max_pixels} px" if row.max_pixels else "")
        values = (f"{getattr(row, name):.3f}" for name in figures.values())
        table.add_row(Text(prompt), str(row.layer), row.pooling, norm, centred, *values)
    return table
