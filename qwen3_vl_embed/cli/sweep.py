"""Sweep recipes over a checkpoint that is loaded here, without a server. Imported by its command alone: needs torch."""

import json
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from embedder import Embedder, EmbedderConfig, EmbedError
from embedder.prepare.prompts import prompt as known_prompt
from qwen3_vl_embed.cli.sources import SourceError
from qwen3_vl_embed.cli.vectors import replacing
from qwen3_vl_embed.evaluation.colours import Palette, xkcd
from qwen3_vl_embed.evaluation.heatmap import draw
from qwen3_vl_embed.evaluation.sweep import Row, blocks, ranking, recommended, sweep
from qwen3_vl_embed.serving.console import Console


def run(
    checkpoint: str, prompts: list[str], resolutions: list[int], colours: int | None, folder: Path, console: Console
) -> None:
    """Write sweep.jsonl (which a second run continues) and sweep.png into `folder`; print the table and what to use.

    Raises:
        SourceError: no such checkpoint or prompt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    palette = xkcd()
    if colours:
        palette = Palette(palette.names[:colours], palette.rgb[:colours])
    try:
        for name in prompts:
            known_prompt(name)
        with console.status(Text(f"loading {checkpoint} …")):
            embedder = Embedder.load(EmbedderConfig(checkpoint=checkpoint))
        todo = blocks(prompts, [*resolutions] or [None])
        with _progress(console) as bar:
            task = bar.add_task("", total=2 * len(palette) * len(todo))
            file = folder / f"sweep-{embedder.checkpoint.fingerprint[:12]}-{len(palette)}.jsonl"
            rows = sweep(embedder, palette, todo, file, lambda count: bar.advance(task, count))
    except EmbedError as error:
        raise SourceError(str(error)) from None
    with replacing(folder / "sweep.png") as picture:
        draw(rows, picture)
    console.print(_table(rows))
    for what, row in recommended(rows):
        console.print(f"{what}: MRR {row.test_mrr:.3f} on the test half; as options of a request:", style="bold")
        console.out(json.dumps(row.options()))
    console.print(f"{folder / 'sweep.png'}, {file}")


def _progress(console: Console) -> Progress:
    columns = [TextColumn("sweeping"), BarColumn(), MofNCompleteColumn(), TextColumn("inputs")]
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def _table(rows: list[Row], most: int = 15) -> Table:
    table = Table(title=f"The best {min(most, len(rows))} of {len(rows)} recipes, chosen on one half")
    for column in ("prompt", "pixels", "layer", "pooling", "norm", "centred"):
        table.add_column(column)
    for column in ("MRR chosen", "MRR test", "R@1 test", "matched", "unmatched", "probe R²"):
        table.add_column(column, justify="right")
    for row in ranking(rows)[:most]:
        norm, centred = ("yes" if flag else "no" for flag in (row.final_norm, row.center))
        what = (row.prompt, str(row.max_pixels or ""), str(row.layer), row.pooling, norm, centred)
        values = (row.choose_mrr, row.test_mrr, row.test_recall_1, row.test_matched, row.test_unmatched, row.probe)
        table.add_row(*what, *(f"{value:.3f}" for value in values))
    return table
