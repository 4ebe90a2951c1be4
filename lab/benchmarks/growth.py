"""How time and peak memory grow with the batch, the image's size and the text's length.

    python -m lab.benchmarks.growth --checkpoint 100m
    python -m lab.benchmarks.growth --checkpoint 4b --device cuda

The embedder has a budget: beyond it a batch is computed in parts, so memory should stop growing where time goes on.
Images are reduced to 1024×1024 pixels (the tiny checkpoint: 64×64), so there both should stop. The last two points are
what breaks servers: 16 images of 12 megapixels in one call, about one budget full, and 64 of them. The latter should
take hardly more memory. None may fail.

Peak memory is what was held beyond the loaded model, the inputs and one small call before it. On a CPU a process that
is fresh for every point tells it (VmHWM), on a GPU torch's own count (max_memory_allocated). A call of less than five
seconds is made three times, and the fastest counts.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache

import typer

from embedder import Embedder, EmbedInput
from lab.benchmarks import flops, inputs, subject
from lab.benchmarks.checkpoints import config
from lab.benchmarks.gpu import forget_peak, is_cuda, peak_bytes
from lab.benchmarks.results import CheckpointOption, DeviceOption, QuickOption, ResultsOption, Run, track

BATCHES = (1, 4, 16, 64)
SIDES = (128, 256, 512, 1024, 2048)
WORDS = (1, 16, 64, 256)  # colour names of a text: 3 to 4 tokens each
MANY = (16, 64)
TIMES, SHORT_SECONDS = 3, 5.0
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Point:
    """`count` inputs of one kind: images of a size, or texts of so many words."""

    series: str  # batch, side, words or photos
    value: int  # where it stands in its series
    count: int
    size: tuple[int, int] | None = None  # of the images
    words: int = 0  # of the texts

    def inputs(self) -> list[EmbedInput]:
        if self.size is None:
            return [EmbedInput(text=inputs.text(self.words, i)) for i in range(self.count)]
        seeds = 4 if self.size == inputs.TWELVE_MEGAPIXELS else inputs.DISTINCT  # large ones take long to make
        return [EmbedInput(image=inputs.picture(self.size, i % seeds)) for i in range(self.count)]


def points(quick: bool) -> list[Point]:
    """The three series, and the photos of 12 megapixels."""
    batches, sides, words = (BATCHES[:2], SIDES[:1], WORDS[:1]) if quick else (BATCHES, SIDES, WORDS)
    many = (1, 4) if quick else MANY
    return [
        *(Point("batch", count, count, inputs.SWATCH) for count in batches),
        *(Point("side", side, 1, (side, side)) for side in sides),
        *(Point("words", each, 1, words=each) for each in words),
        *(Point("photos", count, count, inputs.TWELVE_MEGAPIXELS) for count in many),
    ]


@cache
def loaded(folder: str, device: str) -> Embedder:
    """Once per process, with one call before anything is measured."""
    embedder = subject.load(folder, device)
    embedder.embed(inputs.half_and_half(2))
    return embedder


def measure(point: Point, folder: str, device: str) -> dict:
    """Seconds of the call and of its forward pass, and bytes of memory at the peak beyond those before it."""
    embedder, batch = loaded(folder, device), point.inputs()
    forget_peak(device)
    before = peak_bytes(device)
    runs = [subject.timed(embedder, batch)]
    peak = peak_bytes(device)
    while len(runs) < TIMES and runs[0][0] < SHORT_SECONDS:
        runs.append(subject.timed(embedder, batch))
    seconds, forward = min(runs)
    tokens, patches = subject.shapes(embedder, batch[:1])[0]
    return asdict(point) | {
        "tokens": tokens,  # of one input
        "patches": patches,
        "seconds": seconds,
        "forward_s": forward,
        "peak_bytes": peak - before,
        "process_bytes": peak,
    }


def measure_all(todo: list[Point], folder: str, device: str) -> list[dict]:
    """A fresh process for each point, on a GPU one for all: its counter can be set back."""
    fresh = None if is_cuda(device) else 1
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=fresh) as pool:
        work = [pool.submit(measure, point, folder, device) for point in todo]
        return [each.result() for each in track(work, "points")]


@app.command(epilog="Example: python -m lab.benchmarks.growth --checkpoint tiny --quick")
def main(
    checkpoint: CheckpointOption = "tiny",
    device: DeviceOption = "cpu",
    quick: QuickOption = False,
    results: ResultsOption = None,
) -> None:
    """Measure time and peak memory against batch, image size and text length."""
    run = Run("growth", checkpoint, device, quick, results)
    ceiling = run.ceiling()
    rows = measure_all(points(quick), run.folder, device)
    for row in rows:
        flop = flops.count(config(checkpoint), row["tokens"], row["patches"]).total * row["count"]
        row["ceiling_s"] = flop / ceiling.matmul_flops
    run.finish(ceiling, "swatches by batch, one image by side, one text by words, 12-megapixel photos", {"rows": rows})


if __name__ == "__main__":
    app()
