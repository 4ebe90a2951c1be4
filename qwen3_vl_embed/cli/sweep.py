"""Sweep recipes over a checkpoint that is loaded here, without a server. Imported by its command alone: needs torch."""

import json
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from embedder import EmbedError
from embedder.prepare.prompts import prompt as known_prompt
from qwen3_vl_embed.cli import terminal
from qwen3_vl_embed.cli.checkpoint import load
from qwen3_vl_embed.evaluation import sweep
from qwen3_vl_embed.evaluation.colours import Palette, xkcd
from qwen3_vl_embed.evaluation.heatmap import draw
from qwen3_vl_embed.evaluation.pairs import check_count
from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.files.vectors import check_folder, replacing
from qwen3_vl_embed.serving.console import Console

WIDE = 76  # characters: what all figures need


def subject(count: int | None, images: Path | None) -> sweep.Subject:
    """The first `count` of the 949 colours, or a folder of images with captions. Raises SourceError."""
    if count and images:
        raise SourceError("--colours and --images exclude each other.")
    if images:
        return sweep.captioned(images)
    palette = xkcd()
    return sweep.colours(Palette(palette.names[:count], palette.rgb[:count]))


def run(
    checkpoint: str, prompts: list[str], resolutions: list[int], what: sweep.Subject, folder: Path, console: Console
) -> None:
    """Write sweep-*.jsonl (which a second run continues) and sweep.png into `folder`; print tables and what to use.

    Raises:
        SourceError: no such checkpoint or prompt, or what cannot be embedded or compared.
        VectorFileError: the folder cannot be written.
    """
    check_count(len(what))
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name in prompts:
            known_prompt(name)
        embedder = load(checkpoint)
        todo = [sweep.Block(prompt, most) for prompt in prompts for most in (*resolutions,) or (None,)]
        columns = [TextColumn("sweeping"), BarColumn(), MofNCompleteColumn(), TextColumn("inputs")]
        columns += [TimeElapsedColumn(), TimeRemainingColumn()]
        with Progress(*columns, console=terminal.err, disable=not terminal.err.is_terminal) as bar:
            task = bar.add_task("", total=2 * len(what) * len(todo))
            file = folder / f"sweep-{embedder.info['id'][:12]}-{what.digest}.jsonl"
            rows, stages = sweep.sweep(embedder, what, todo, file, lambda count: bar.advance(task, count))
    except EmbedError as error:
        raise SourceError(str(error)) from None
    with replacing(folder / "sweep.png") as picture:
        draw(rows, picture)
    console.print(_table(rows, console.width))
    console.print(_vision(stages))
    console.print(_label_free(list(sweep.label_free(rows))))
    for name, row in sweep.recommended(rows):
        console.print(
            f"{name}: MRR {row.test_mrr:.3f} on the test half; as options of a request:", style="bold", soft_wrap=True
        )
        asked = list(dict.fromkeys(json.dumps(row.options(kind)) for kind in ("text", "image")))
        for kind, options in zip(("of texts: ", "of images: "), asked, strict=False):
            console.out(f"{kind if len(asked) > 1 else ''}{options}")
    console.print(f"{folder / 'sweep.png'}, {file}", soft_wrap=True)


def _table(rows: list[sweep.Row], width: int, most: int = 15) -> Table:
    """All figures in the 80 columns of a pipe; in fewer, the first three: the .jsonl has them all."""
    table = _plain(f"The best {min(most, len(rows))} of {len(rows)} recipes, chosen on one half")
    table.add_column("prompt", overflow="fold")
    for column in ("layer", "pool", "norm", "moved"):
        table.add_column(column, no_wrap=True)
    figures = {
        "MRR\nchosen": "choose_mrr",
        "MRR\ntest": "test_mrr",
        "R@1\ntest": "test_recall_1",
        "in one\npool": "test_mixed_recall_1",
        "probe\nR²": "probe",
        "intr.\ndim.": "intrinsic_dimension",
    }
    figures = dict(list(figures.items())[: 6 if width >= WIDE else 3])
    for column in figures:
        table.add_column(column, justify="right", no_wrap=True)
    for row in sweep.ranking(rows)[:most]:
        values = (_written(getattr(row, name)) for name in figures.values())
        moved = "" if row.calibration == "none" else row.calibration
        norm = "yes" if row.final_norm else "no"
        table.add_row(_prompt(row.prompt, row.max_pixels), str(row.layer), row.pooling, norm, moved, *values)
    return table


def _vision(stages: list[sweep.Stage]) -> Table:
    table = _plain("What images know at each stage of the vision tower (in the sweep only)")
    for column in ("stage", "numbers", "probe R²", "intrinsic dimension"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for each in stages:
        stage = each.stage + (f", {each.max_pixels} px" if each.max_pixels else "")
        table.add_row(stage, str(each.dimension), _written(each.probe), _written(each.intrinsic_dimension))
    return table


def _label_free(found: list[sweep.LabelFree]) -> Table:
    table = _plain("Layers without labels: the one of least intrinsic dimension, the best, and the rank correlation")
    table.add_column("prompt", overflow="fold")
    for column in ("pool", "least", "its MRR", "best", "its MRR", "Spearman"):
        table.add_column(column, justify="left" if column == "pool" else "right", no_wrap=True)
    for each in found:
        layers = (text for row in (each.chosen, each.best) for text in (str(row.layer), _written(row.test_mrr)))
        prompt = _prompt(each.best.prompt, each.best.max_pixels)
        table.add_row(prompt, each.best.pooling, *layers, _written(each.agreement))
    return table


def _plain(title: str) -> Table:
    return terminal.table(title, title_justify="left", collapse_padding=True)


def _prompt(name: str, max_pixels: int | None) -> Text:
    return Text(name + (f", {max_pixels} px" if max_pixels else ""))


def _written(value: float) -> str:
    return "none" if value != value else f"{value:.3f}"
