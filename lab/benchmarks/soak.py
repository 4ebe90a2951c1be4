"""Does anything grow? A mixed load for a long while, and after every slice of it what each process holds.

    python -m lab.benchmarks.soak --checkpoint tiny --minutes 60

Names, swatches and photos of all sizes from eight callers, the adapter's cache off (it is bounded, and would hide the
model). After each slice: every process's memory, open files and threads, and the bytes in shared memory. Told are the
first and last sample after the warm-up (a fifth of the time). Beside them is the slope of a line through all of them,
an hour's worth. Processes are read from outside, by /proc; a leak smaller than the noise of its time is not seen.
"""

import os
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer

from lab.benchmarks import inputs, load, traffic
from lab.benchmarks.load import request
from lab.benchmarks.results import CheckpointOption, DeviceOption, QuickOption, ResultsOption, Run, track
from lab.benchmarks.services import running
from qwen3_vl_embed.protocol import data_url

CALLERS = 8
SLICE_SECONDS = 10.0
WARM_UP = 0.2  # of the samples: allocators and recordings fill
PHOTOS = 24
MOST_EDGE = 1024
SHARED_MEMORY = Path("/dev/shm")
MIB = 2**20
app = typer.Typer(add_completion=False, rich_markup_mode=None)


def requests(seed: int = 0) -> list[bytes]:
    """Names and swatches, with a photo of another size after every few, and a batch now and then."""
    rng = np.random.default_rng(seed)
    mixed = traffic.half_and_half(64)
    for index in range(PHOTOS):
        width, height = (int(edge) for edge in rng.integers(32, MOST_EDGE, 2))
        photo = data_url(inputs.picture((width, height), index))
        mixed.insert(5 * index, request("/img/embed", {"input": photo}))
    return [*mixed, request("/txt/embed", {"input": inputs.names()[:64]})]


def stack() -> list[psutil.Process]:
    """What this program started and what that started: the stack, and whatever runs beside it for the benchmark."""
    return psutil.Process().children(recursive=True)


def sample(processes: list[psutil.Process]) -> dict[str, float]:
    """What they hold, by what it is; processes of one name are numbered in the order in which they started."""
    regions = SHARED_MEMORY.glob(f"qwen3_vl_embed_{os.getpid()}_*")
    blocks = sum(region.stat().st_blocks for region in regions)  # in use: a region's size says what it may become
    found: dict[str, float] = {"shared memory MiB": blocks * 512 / MIB}
    for process in processes:
        with process.oneshot():
            name = f"{label(process)}.{sum(key.startswith(f'{label(process)}.') for key in found) // 3}"
            found[f"{name} RSS MiB"] = process.memory_info().rss / MIB
            found[f"{name} files"] = process.num_fds()
            found[f"{name} threads"] = process.num_threads()
    return found


def label(process: psutil.Process) -> str:
    """The program or module it runs."""
    words = process.cmdline()
    if "-m" in words[:3]:
        return words[words.index("-m") + 1]
    return next((Path(word).stem for word in words if word.endswith(".py")), process.name())


def slopes(samples: list[dict[str, float]], hours: list[float]) -> list[dict[str, object]]:
    """Of each quantity after the warm-up: first, last, and how much an hour adds."""
    start = int(len(samples) * WARM_UP)
    rows: list[dict[str, object]] = []
    for name in samples[start]:
        values = [each[name] for each in samples[start:] if name in each]
        slope = float(np.polyfit(hours[start:], values, 1)[0]) if len(values) == len(hours) - start > 1 else None
        rows.append({"what": name, "first": values[0], "last": values[-1], "most": max(values), "per_hour": slope})
    return rows


def measure(url: str, minutes: float, seconds: float) -> dict[str, object]:
    """Load, sample, and so on; the figures."""
    mixed, processes = requests(), stack()
    samples, hours, rates, started = [], [], [], time.monotonic()
    for _ in track(range(max(2, round(minutes * 60 / seconds))), "soak"):
        rates.append(load.closed(url, mixed, CALLERS, seconds).figures())
        samples.append(sample(processes))
        hours.append((time.monotonic() - started) / 3600)
    halves = rates[: len(rates) // 2], rates[len(rates) // 2 :]  # a service that slows down answers fewer in the second
    return {
        "minutes": hours[-1] * 60,
        "requests": round(sum(each["requests_per_s"] for each in rates) * seconds),
        "requests_per_s": [float(np.mean([each["requests_per_s"] for each in part])) for part in halves],
        "p99_ms": [float(np.median([each["p99_ms"] for each in part])) for part in halves],
        "held": slopes(samples, hours),
    }


@app.command(epilog="Example: python -m lab.benchmarks.soak --checkpoint tiny --minutes 60")
def main(
    checkpoint: CheckpointOption = "tiny",
    device: DeviceOption = "cpu",
    quick: QuickOption = False,
    results: ResultsOption = None,
    minutes: Annotated[float, typer.Option(help="How long.", min=0.1)] = 60,
) -> None:
    """Load the served model for a long while and tell what grew."""
    run = Run("soak", checkpoint, device, quick, results, f"--minutes {minutes:g}")
    ceiling = run.ceiling()
    seconds = 0.5 if quick else SLICE_SECONDS
    with running(run.folder, device) as services:
        found = measure(services.ours, 2 * seconds / 60 if quick else minutes, seconds)
    run.finish(ceiling, f"names, swatches and photos of all sizes from {CALLERS} callers; adapter cache off", found)


if __name__ == "__main__":
    app()
