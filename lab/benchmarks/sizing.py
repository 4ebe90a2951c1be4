"""Is `qwen3-vl-embed size` right? What it predicts of the real stack, and what open loops then measure there.

    python -m lab.benchmarks.sizing --checkpoint 100m

Passes are measured as the command does it. Then requests arrive at random at 30, 60 and 80 % of the rate that full
passes give. The simulation gets the very same arrivals, so chance is no excuse for a difference. Passes are measured
again at the end: where they have changed, the machine was not the same, and the row says nothing. The stack has all
cores but the last one, and the client that. So what a client costs is no pass's time, as with a GPU.
"""

import asyncio
from itertools import islice
from typing import Annotated

import numpy as np
import typer
from rich.progress import track

from lab.benchmarks import load
from lab.benchmarks.results import CheckpointOption, DeviceOption, QuickOption, ResultsOption, Run, console
from lab.benchmarks.services import running
from qwen3_vl_embed.cli.size import items, measure
from qwen3_vl_embed.sizing import WARM_UP, Seconds, Times, arrivals, simulate

SHARES = (0.3, 0.6, 0.8)  # of the capacity
WORDS = 4
WORKLOAD = f"texts of {WORDS} words, one a request, the adapter's cache off; the client on a core of its own"
app = typer.Typer(add_completion=False, rich_markup_mode=None)


def figures(latencies: Seconds, came: Seconds) -> dict[str, float]:
    """Of all but the first, while queues filled."""
    first = int(WARM_UP * len(came))
    p50, p99 = np.percentile(latencies[first:], (50, 99)) * 1e3
    took = (came + latencies)[first:].max() - came[first]
    return {"per_s": (len(came) - first) / took, "p50_ms": p50, "p99_ms": p99}


def compare(url: str, times: Times, rate: float, seconds: float) -> dict:
    """One open loop, measured and simulated; `ratio` is measured over simulated."""
    came = arrivals(rate, max(1, round(rate * seconds)))
    texts = islice(items(32, WORDS), len(came))
    requests = [load.request("/txt/embed", {"input": each.name}) for each in texts]
    measured = figures(load.open_loop(url, requests, rate, seconds).latencies, came)
    simulated = figures(simulate(times, came).latencies, came)
    ratio = {name: measured[name] / simulated[name] for name in measured}
    return {"rate": rate, "requests": len(came), "measured": measured, "simulated": simulated, "ratio": ratio}


def run_all(url: str, seconds: float) -> dict:
    """The times of passes before and after, and a row for each share of the capacity."""
    given = items(32, WORDS)
    asyncio.run(measure(url, given, seconds / 20))  # warm-up
    before = asyncio.run(measure(url, given, seconds / 6))
    shown = track(SHARES, "open loops", console=console, transient=True)
    rows = [{"share": share, **compare(url, before, share * before.capacity, seconds)} for share in shown]
    after = asyncio.run(measure(url, given, seconds / 6))
    changed = after.capacity / before.capacity
    return {"passes": dict(before.passes), "delay_s": before.delay, "capacity_per_s": before.capacity,
            "capacity_after": changed, "rows": rows}  # fmt: skip


@app.command(epilog="Example: python -m lab.benchmarks.sizing --checkpoint 100m")
def main(
    checkpoint: CheckpointOption = "100m",
    device: DeviceOption = "cpu",
    quick: QuickOption = False,
    results: ResultsOption = None,
    seconds: Annotated[float, typer.Option(help="Of each open loop.")] = 40.0,
) -> None:
    """Compare what `qwen3-vl-embed size` predicts with what open loops measure."""
    run = Run("sizing", checkpoint, device, quick, results, f"--seconds {seconds:g}")
    ceiling = run.ceiling()
    with running(run.folder, device, apart=True) as services:
        found = run_all(services.ours, 1.0 if quick else seconds)
    run.finish(ceiling, WORKLOAD, found)


if __name__ == "__main__":
    app()
