"""The same checkpoint, the same files and strings, one run: this project against what people would use instead.

    python -m lab.benchmarks.peers --checkpoint 100m
    python -m lab.benchmarks.peers --checkpoint 4b --device cuda --batch 64

Half of a batch are texts (colour names and some of about 500 tokens), half images of many sizes. Everyone decodes the
same files and says the same prompt (chat.py). Everyone computes in the dtype of their own default, and where that is
not ours, also in ours. The vectors' directions are compared before anything is timed: who computes something else is
no peer. Then everyone takes turns, A B C D A B C D, and what counts is the ratio of medians. So a machine that is busy
for a while slows all of them.

sentence-transformers is `encode` of the installed release over Transformer, Pooling (last token) and Normalize. "One at
a time" is what one would write first: the full model with head and `output_hidden_states=True`.
"""

from statistics import median
from time import perf_counter
from typing import Annotated

import numpy as np
import typer

from embedder import EmbedInput
from embedder.checkpoint import open_checkpoint
from embedder.parity import least_cosine
from lab.benchmarks import checkpoints, flops, inputs, subject
from lab.benchmarks.contenders import Contender, Ours, SentenceTransformers, present
from lab.benchmarks.gpu import is_cuda, synchronize
from lab.benchmarks.results import CheckpointOption, DeviceOption, QuickOption, ResultsOption, Run, console, fail, track

SAME = {"float32": 0.9999, "bfloat16": 0.99}  # least cosine where all of it is so; roundings of 36 random layers add up
app = typer.Typer(add_completion=False, rich_markup_mode=None)


def contenders(folder: str, device: str, dtype: str) -> dict[str, Contender]:
    """Everyone that is installed, by name, with the checkpoint loaded; ours is the first, and computes in `dtype`."""
    installed = present()
    if SentenceTransformers not in installed:
        console.print("sentence-transformers is not installed and left out: make bench-setup")
    ours, *peers = installed
    who = [(ours.name, ours, dtype), *((each.name, each, "auto") for each in peers)]
    if dtype != open_checkpoint(folder).dtype:
        who += [(f"{each.name}, {dtype}", each, dtype) for each in peers]
    return {name: each(folder, device, its) for name, each, its in track(who, "loading")}


def parity(everyone: dict[str, Contender], batch: list[EmbedInput]) -> dict[str, dict[str, float]]:
    """Each one's least cosine to our vectors, of texts and of images; also everyone's warm-up."""
    ours, *peers = (each.embed(batch) for each in track(list(everyone.values()), "comparing vectors"))
    is_text = np.array([item.text is not None for item in batch])
    kinds = {"texts": is_text, "images": ~is_text}
    return {
        name: {kind: least_cosine(ours[rows], vectors[rows]) for kind, rows in kinds.items()}
        for name, vectors in zip(list(everyone)[1:], peers, strict=True)
    }


def take_turns(
    everyone: dict[str, Contender], batch: list[EmbedInput], rounds: int, device: str
) -> dict[str, list[float]]:
    """Seconds of each call, by name."""
    took: dict[str, list[float]] = {name: [] for name in everyone}
    for _ in track(range(rounds), "rounds"):
        for name, each in everyone.items():
            synchronize(device)
            started = perf_counter()
            each.embed(batch)
            took[name].append(perf_counter() - started)
    return took


def figures(took: dict[str, list[float]], batch: int) -> dict[str, dict]:
    """Inputs a second, and how many times longer than ours it takes."""
    ours = median(took[Ours.name])
    return {
        name: {"items_per_s": batch / median(each), "times_ours": median(each) / ours, "calls_s": each}
        for name, each in took.items()
    }


@app.command(epilog="Example: python -m lab.benchmarks.peers --checkpoint 100m --batch 16 --rounds 3")
def main(
    checkpoint: CheckpointOption = "tiny",
    device: DeviceOption = "cpu",
    quick: QuickOption = False,
    results: ResultsOption = None,
    batch: Annotated[int | None, typer.Option(help="Inputs of a call [default: 16 on a CPU, 64 on a GPU].")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of everyone.")] = 3,
) -> None:
    """Compare the embedder with transformers and sentence-transformers on one mixed batch."""
    size, rounds = (8, 1) if quick else (batch or (64 if is_cuda(device) else 16), rounds)
    run = Run("peers", checkpoint, device, quick, results, f"--batch {size} --rounds {rounds}")
    ceiling = run.ceiling()
    everyone, items = contenders(run.folder, device, ceiling.dtype), inputs.mixed(size)
    ours = everyone[Ours.name]
    assert isinstance(ours, Ours)
    shapes = subject.shapes(ours.embedder, items)
    flop = sum(flops.count(checkpoints.config(checkpoint), *each).total for each in shapes)
    console.print(f"at most {size * ceiling.matmul_flops / flop:.3g} inputs/s: {flop / size / 1e9:.3g} GFLOP each")
    cosines = parity(everyone, items)
    as_stored = open_checkpoint(run.folder).dtype == ceiling.dtype
    same = {name: SAME[ceiling.dtype if as_stored or name.endswith(ceiling.dtype) else "bfloat16"] for name in cosines}
    if any(least < same[name] for name, each in cosines.items() for least in each.values()):
        fail(f"the vectors differ, so a comparison would be of different things: {cosines}")
    found = figures(take_turns(everyone, items, rounds, device), size)
    workload = f"{size} inputs: names, long texts, swatches, photos, 512×512; {rounds} rounds, median"
    run.finish(ceiling, workload, {"contenders": found, "cosines": cosines, "tokens": [t for t, _ in shapes]})


if __name__ == "__main__":
    app()
