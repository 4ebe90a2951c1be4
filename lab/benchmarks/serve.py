"""What of the embedder survives through Triton and the adapter, against the service that one would write instead.

    python -m lab.benchmarks.serve --checkpoint tiny
    python -m lab.benchmarks.serve --checkpoint 100m --part share
    python -m lab.benchmarks.serve --checkpoint 4b --device cuda

Both services run side by side on this machine with the same checkpoint; the one that is not asked is idle. Ours is
Triton and the adapter with its cache off; the other is plan_service.py, which has one hop less. Their vectors are
compared before anything is timed. The client (load.py) shares the machine, so its own CPU time is told too.

    replay  the colour benchmark's 1,898 requests in a row, singly, and in its batches of 64
    load    1, 8, 32 and 128 callers, half names, half swatches: requests/s, p50, p95, p99; then Poisson arrivals at
            60, 80 and 90 % of each one's best, where latency counts from the planned arrival
    triton  Triton alone by perf_analyzer, past the adapter
    share   requests/s through everything at 32 callers, over the embedder alone in batches of 32
    busy    how busy the GPU is while swatches go through everything (nvidia-smi)
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import typer

from lab.benchmarks import inputs, perf_analyzer, subject, traffic
from lab.benchmarks.gpu import is_cuda
from lab.benchmarks.results import CheckpointOption, DeviceOption, QuickOption, ResultsOption, Run, console, fail, track
from lab.benchmarks.services import Services, running

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Part(StrEnum):
    """What can be measured by itself."""

    REPLAY = "replay"
    LOAD = "load"
    TRITON = "triton"
    SHARE = "share"
    BUSY = "busy"


def triton_alone(services: Services, quick: bool) -> list[dict] | str:
    """Rows by number of callers, or the sentence that says why there are none."""
    if lacking := perf_analyzer.missing():
        console.print(f"[yellow]{lacking}")
        return lacking
    batch = inputs.half_and_half(2 * traffic.DIFFERENT)
    callers, window = ((8,), 1000) if quick else (traffic.CALLERS, perf_analyzer.WINDOW_MS)
    turns = track(callers, "perf_analyzer")
    return [{"callers": each, **perf_analyzer.measure(services.triton, batch, each, window)} for each in turns]


def measure(services: Services, parts: list[Part], run: Run) -> dict:
    """Each part's figures, by its name."""
    count, seconds, rounds = (16, 0.3, 1) if run.quick else (len(inputs.names()), 5.0, 2)
    found: dict = {}
    if services.plan:
        found["least_cosine"] = traffic.least_cosine(services)
        if found["least_cosine"] < (0.99 if is_cuda(run.device) else traffic.SAME):
            fail(f"the two services give different vectors: least cosine {found['least_cosine']}")
    steps: dict[Part, Callable[[], object]] = {
        Part.REPLAY: lambda: traffic.replay(services, count),
        Part.LOAD: lambda: traffic.loops(services, seconds, rounds),
        Part.TRITON: lambda: triton_alone(services, run.quick),
        Part.SHARE: lambda: traffic.survival(services, subject.load(run.folder, run.device), 2 * seconds, rounds + 1),
        Part.BUSY: lambda: traffic.busy(services, run.device, seconds),
    }
    return found | {part.value: steps[part]() for part in parts}


@app.command(epilog="Example: python -m lab.benchmarks.serve --checkpoint tiny --part replay --part load")
def main(
    checkpoint: CheckpointOption = "tiny",
    device: DeviceOption = "cpu",
    quick: QuickOption = False,
    results: ResultsOption = None,
    part: Annotated[list[Part] | None, typer.Option(help="Measure (and write) only these [default: all].")] = None,
) -> None:
    """Measure the served model, beside the service that one would write instead."""
    options = " ".join(f"--part {each.value}" for each in part or [])
    run = Run("serve", checkpoint, device, quick, results, options)
    ceiling = run.ceiling()
    parts = part or [each for each in Part if each is not Part.BUSY or is_cuda(device)]
    with_plan = bool({Part.REPLAY, Part.LOAD} & set(parts))
    with running(run.folder, device, with_plan) as services:
        found = measure(services, parts, run)
    run.finish(ceiling, "colour names and 244×244 swatches; adapter cache off", found)


if __name__ == "__main__":
    app()
