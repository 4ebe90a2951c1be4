"""What the embedder alone does: `Embedder.embed` in this process, by kind of input and batch size.

    python -m lab.benchmarks.forward --checkpoint 100m
    python -m lab.benchmarks.forward --checkpoint 4b --device cuda

Every row is the median of a few calls with the same batch, after one that is not counted:

    items/s    inputs a second, from encoded files and strings to vectors on the CPU
    forward/s  the same without decoding, resizing and tokenizing: the model's share of the call (Embedding.forward_ms)
    tokens/s   language-model tokens a second, prompt included
    TFLOP/s    operations of the model as published (flops.py) over the forward time
    MFU        that, as a share of what this machine's large matrix products reach in the same dtype and run

A single short input is not bound by arithmetic but by reading every weight once. So batch 1 of a colour name is also
compared with the time that the measured copy bandwidth needs for the language model's matrices. Batches that would
take longer than `--seconds` a call are left out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Annotated

import typer

from embedder import Embedder, EmbedInput
from lab.benchmarks import checkpoints, flops, inputs, subject
from lab.benchmarks.hardware import Ceiling
from lab.benchmarks.results import CheckpointOption, DeviceOption, QuickOption, ResultsOption, Run, console, track

BATCHES = (1, 8, 32, 64, 256)
CALLS = 3
BYTES = {"float32": 4, "bfloat16": 2}
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Row:
    """One kind at one batch size. Times are medians of a call, in seconds."""

    kind: str
    batch: int
    tokens: int  # of the whole batch
    patches: int  # of the whole batch, 16×16 pixels each
    flop: float  # of the whole batch
    call_s: float
    forward_s: float

    def figures(self, ceiling: Ceiling) -> dict:
        rate = self.flop / self.forward_s
        return asdict(self) | {
            "items_per_s": self.batch / self.call_s,
            "forward_per_s": self.batch / self.forward_s,
            "tokens_per_s": self.tokens / self.call_s,
            "flops": rate,
            "mfu": rate / ceiling.matmul_flops,
            "mfu_of_call": self.flop / self.call_s / ceiling.matmul_flops,
        }


def measure(embedder: Embedder, config: dict, kind: str, batch: list[EmbedInput], calls: int) -> Row:
    """One row; not counted is the first call, in which a lone input's pass is captured."""
    with embedder.model.capturing():
        subject.timed(embedder, batch)
    took = [subject.timed(embedder, batch) for _ in range(calls)]
    shapes = subject.shapes(embedder, batch)
    tokens, patches = (sum(column) for column in zip(*shapes, strict=True))
    flop = sum(flops.count(config, *each).total for each in shapes)
    whole, forward = (median(column) for column in zip(*took, strict=True))
    return Row(kind, len(batch), tokens, patches, flop, whole, forward)


def rows(
    embedder: Embedder, config: dict, kind: str, batches: Iterable[int], calls: int, seconds: float
) -> Iterator[Row]:
    """One kind at every batch size, as far as a call's expected time stays within `seconds`."""
    row = None
    for size in batches:
        if row is None or row.call_s * size / row.batch <= seconds:
            row = measure(embedder, config, kind, inputs.batch(kind, size), calls)
            yield row


def lone_name(row: Row, config: dict, ceiling: Ceiling) -> dict:
    """Batch 1 of a colour name against the time to read the language model's matrices once."""
    bound = flops.language_weights(config) * BYTES[ceiling.dtype] / ceiling.copy_bytes
    return {"forward_s": row.forward_s, "weights_s": bound, "times_the_bound": row.forward_s / bound}


@app.command(epilog="Example: python -m lab.benchmarks.forward --checkpoint 100m --seconds 5")
def main(
    checkpoint: CheckpointOption = "tiny",
    device: DeviceOption = "cpu",
    quick: QuickOption = False,
    results: ResultsOption = None,
    seconds: Annotated[float, typer.Option(help="Longest call to measure.")] = 6,
) -> None:
    """Measure the embedder alone: items, tokens and operations a second, by kind and batch size."""
    run = Run("forward", checkpoint, device, quick, results, f"--seconds {seconds:g}")
    ceiling = run.ceiling()
    embedder, config = subject.load(run.folder, device), checkpoints.config(checkpoint)
    batches, calls, seconds = ([1, 8], 1, 0.2) if quick else (list(BATCHES), CALLS, seconds)
    kinds = track(inputs.KINDS, "kinds")
    measured = [row for kind in kinds for row in rows(embedder, config, kind, batches, calls, seconds)]
    found = [row.figures(ceiling) for row in measured]
    lone = lone_name(measured[0], config, ceiling)
    console.print("batch 1, colour name: {times_the_bound:.3g} × the time to read the weights once".format(**lone))
    workload = f"each kind in batches of {', '.join(map(str, batches))}; median of {calls} calls"
    run.finish(ceiling, workload, {"rows": found, "lone_name": lone, "attention": embedder.info["attention"]})


if __name__ == "__main__":
    app()
