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
from rich.progress import track
from rich.table import Table

from lab.benchmarks import inputs, load, traffic
from lab.benchmarks.load import request
from lab.benchmarks.results import CheckpointOption, DeviceOption, QuickOption, ResultsOption, Run, console, fail
from lab.benchmarks.services import running
from qwen3_vl_embed.serving.settings import ServingError

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
        photo = traffic.data_url(inputs.picture((width, height), index))
        mixed.insert(5 * index, request("/img/embed", {"input": photo}))
    return [*mixed, request("/txt/embed", {"input": inputs.names()[:64]})]


def stack() -> list[psutil.Process]:
    """What this program started and what that started: the stack, and whatever runs beside it for the benchmark."""
    return psutil.Process().children(recursive=True)


def sample(processes: list[psutil.Process]) -> dict[str, float]:
    """What they hold, by what it is; processes of one name are numbered in the order in which they started."""
    found: dict[str, float] = {"shared memory MiB": shared_mib()}
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


def shared_mib() -> float:
    """Blocks in use, since a region's size says what it may become."""
    return sum(file.stat().st_blocks * 512 for file in SHARED_MEMORY.glob(f"qwen3_vl_embed_{os.getpid()}_*")) / MIB


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
    for _ in track(range(max(2, round(minutes * 60 / seconds))), "soak", console=console, transient=True):
        rates.append(load.closed(url, mixed, CALLERS, seconds).figures())
        samples.append(sample(processes))
        hours.append((time.monotonic() - started) / 3600)
    half = len(rates) // 2
    return {
        "minutes": hours[-1] * 60,
        "requests": round(sum(each["requests_per_s"] for each in rates) * seconds),
        "requests_per_s": [float(np.mean([each["requests_per_s"] for each in part])) for part in halves(rates, half)],
        "p99_ms": [float(np.median([each["p99_ms"] for each in part])) for part in halves(rates, half)],
        "held": slopes(samples, hours),
    }


def halves(rates: list[dict[str, float]], half: int) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """A service that slows down answers fewer in the second."""
    return rates[:half], rates[half:]


def tell(found: dict) -> None:
    """For people."""
    console.print(
        "{requests} requests in {minutes:.3g} minutes; first and second half: ".format(**found)
        + " and ".join(f"{rate:.4g}/s" for rate in found["requests_per_s"])
    )
    drawn = Table("what", title="after the warm-up")
    for name in ("first", "last", "most", "per_hour"):
        drawn.add_column(name.replace("_", " "), justify="right")
    for row in found["held"]:
        numbers = (row[name] for name in ("first", "last", "most", "per_hour"))
        drawn.add_row(row["what"], *("" if each is None else f"{each:.4g}" for each in numbers))
    console.print(drawn)


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
    try:
        with running(run.folder, device, console, with_plan=False) as services:
            found = measure(services.ours, 2 * seconds / 60 if quick else minutes, seconds)
    except ServingError as error:
        fail(f"cannot serve here: {error}")
    tell(found)
    run.finish(ceiling, f"names, swatches and photos of all sizes from {CALLERS} callers; adapter cache off", found)


if __name__ == "__main__":
    app()
