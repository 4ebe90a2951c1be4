"""Train a tiny checkpoint: texts and images of the same thing learn to point the same way.

One loss, on the vectors that are served (last token, after the final norm, L2-normalised): softmax cross-entropy of
cosine similarities in both directions. Its soft targets are from how far apart things are: CIEDE2000 for colours, so
that a near colour is nearly right.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.nn.functional import cross_entropy, normalize
from transformers import Qwen3VLForConditionalGeneration

from embedder.forward.model import PackedModel
from embedder.forward.packing import pack
from embedder.prepare.renderer import Renderer
from lab.training import architecture
from lab.training.compositions import Composer, split
from lab.training.data import Batch, Sampler, SwatchPool, tokenizer_corpus
from lab.training.shapes import PHRASES, SIDE, ShapeSampler
from qwen3_vl_embed.evaluation.colours import xkcd

FOLDERS = Path(__file__).parents[2] / "checkpoints"
PAIRS, COMPOSED, GROUPS = 64, 16, 4  # in a batch: pairs of names, composed names, groups of random swatches
POOL = 400  # groups of distinct swatches of random colours
PHRASES_A_BATCH = 96
TEMPERATURE = 0.05
LEARNING_RATE = 2e-3
WARMUP = 0.03  # share of the steps
app = typer.Typer(add_completion=False)


def vectors(model: PackedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors of the texts (texts, D) and images (images, D), with gradients, in one packed forward pass."""
    sequences = batch.texts + batch.images
    order = np.argsort([len(sequence) for sequence in sequences], kind="stable")  # equal lengths share attention calls
    packed = pack([sequences[i] for i in order], reuse=False)
    last = model.hidden(packed, [model.layers], torch.tensor(packed.ends) - 1, gradients=True)[model.layers]
    rows = normalize(model.final_norm(last)[torch.from_numpy(np.argsort(order))], dim=1)
    return rows[: len(batch.texts)], rows[len(batch.texts) :]


def loss(text: torch.Tensor, image: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """Both directions' cross-entropy; `distances` is `Batch`'s, (texts, images)."""
    logits = text @ image.T / TEMPERATURE
    return 0.5 * (
        cross_entropy(logits, torch.softmax(-distances, dim=1))
        + cross_entropy(logits.T, torch.softmax(-distances.T, dim=1))
    )


def schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine to zero."""
    warmup = WARMUP * steps
    return min((step + 1) / warmup, 0.5 * (1 + np.cos(np.pi * min(1.0, step / steps))))


def train(model: PackedModel, batches: Iterator[Batch], steps: int) -> Iterator[float]:
    """Take `steps` steps in place; yields each step's loss."""
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    for _ in range(steps):
        batch = next(batches)
        value = loss(*vectors(model, batch), torch.from_numpy(batch.distances).float())
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        yield value.item()


def restore_convolution(model: Qwen3VLForConditionalGeneration, conv: torch.nn.Conv3d) -> None:
    """Put the checkpoint's own patch embedding back: each of its two frames holds half of the trained still kernel."""
    trained = model.model.visual.patch_embed.proj  # embedder.parts.StillPatchEmbed summed the frames
    half = trained.weight.data.unflatten(1, (*conv.kernel_size[1:], 3)).permute(0, 3, 1, 2)[:, :, None] / 2
    conv.weight.data = half.expand_as(conv.weight).contiguous()
    conv.bias.data = trained.bias.data
    model.model.visual.patch_embed.proj = conv


def progress(console: Console) -> Progress:
    columns = [TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}")]
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def colour_batches(renderer: Renderer, seed: int) -> Iterator[Batch]:
    """Names and swatches. Draws a pool of swatches first, which takes half a minute."""
    palette = xkcd()
    composed, _ = split(Composer(palette).all())
    pool = SwatchPool(POOL, np.random.default_rng(seed))
    return Sampler(palette, composed, pool, renderer, seed).batches(PAIRS, COMPOSED, GROUPS)


@dataclass(frozen=True)
class Task:
    """What a checkpoint is trained for."""

    folder: str  # in `checkpoints/`
    texts: tuple[str, ...]  # what its tokenizer is learned from
    pixels: int  # the area to which its images are brought
    steps: int  # optimiser steps that made what ships
    batches: Callable[[Renderer, int], Iterator[Batch]]  # from a renderer and a seed


class Name(StrEnum):
    COLOURS = "colours"
    SHAPES = "shapes"


TASKS = {
    Name.COLOURS: Task("qwen3-vl-color-tiny", xkcd().names, architecture.SWATCH_PIXELS, 1900, colour_batches),
    Name.SHAPES: Task(
        "qwen3-vl-shapes-tiny",
        tuple(map(str, PHRASES)),
        SIDE * SIDE,
        240,
        lambda *given: ShapeSampler(*given).batches(PHRASES_A_BATCH),
    ),
}


@app.command(epilog="Example: python -m lab.training.train --steps 200 --folder build/trial")
def main(
    task: Annotated[Name, typer.Option(help="What it is to know.")] = Name.COLOURS,
    steps: Annotated[int | None, typer.Option(min=2, help="Optimiser steps; left out, those of what ships.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds the weights, the images and the order of the batches.")] = 949,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; their number changes rounding.")] = 2,
    folder: Annotated[Path | None, typer.Option(help="Where to; its other files stay.")] = None,
) -> None:
    """Train a tiny Qwen3-VL checkpoint on a CPU, from nothing."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    console = Console(stderr=True)
    chosen = TASKS[task]
    tokenizer = architecture.train_tokenizer(tokenizer_corpus(chosen.texts))
    whole = Qwen3VLForConditionalGeneration(architecture.configuration(tokenizer)).float()
    convolution = whole.model.visual.patch_embed.proj
    model = PackedModel(whole.model, architecture.MEAN, architecture.STD)
    with console.status("drawing images"):
        batches = chosen.batches(Renderer(tokenizer, max_text_tokens=64), seed)
    steps, folder = steps or chosen.steps, folder or FOLDERS / chosen.folder
    with progress(console) as bar:
        task_id = bar.add_task("", total=steps, loss=float("nan"))
        for value in train(model, batches, steps):
            bar.update(task_id, advance=1, loss=value)
    restore_convolution(whole, convolution)
    architecture.save(whole, tokenizer, folder, chosen.pixels)
    console.print(f"{whole.num_parameters():,} parameters in {folder}")


if __name__ == "__main__":
    app()
