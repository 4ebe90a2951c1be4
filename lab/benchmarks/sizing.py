"""Is `qwen3-vl-embed size` right? What it predicts of the real stack, and what open loops then measure there.

    python -m lab.benchmarks.sizing --checkpoint 100m

Passes are measured as the command does it. Then requests arrive at random at 30, 60 and 80 % of the rate that full
passes give, and passes are measured again. The simulation gets the very same arrivals, so chance is no excuse for a
difference. Nor is a machine that others slow down meanwhile: Triton tells how many passes of each size there were, and
what they took. So the simulated passes are as much slower as the real ones were. All of it is done in rounds, whose
latencies count together. The stack has all cores but the last one, and the client that. So what a client costs is no
pass's time, as with a GPU.
"""

import asyncio
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Annotated

import numpy as np
import tritonclient.grpc as grpcclient
import typer
from numpy.typing import NDArray
from rich.progress import track

from lab.benchmarks import load
from lab.benchmarks.results import CheckpointOption, DeviceOption, QuickOption, ResultsOption, Run, console
from lab.benchmarks.services import Services, running
from qwen3_vl_embed.cli.size import items, measure
from qwen3_vl_embed.sizing import SIZES, WARM_UP, Seconds, Times, arrivals, simulate

Figures = NDArray[np.float64]  # (1 + the most items of a pass, 2): passes and seconds
SHARES = (0.3, 0.6, 0.8)  # of the capacity
WORDS = 4
WORKLOAD = f"texts of {WORDS} words, one a request, the adapter's cache off; the client on a core of its own"
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass
class Seen:
    """Latencies of one share of the capacity, over its loops; of all but each loop's first, while queues filled."""

    latencies: list[Seconds] = field(default_factory=list)
    took: float = 0.0  # seconds

    def add(self, latencies: Seconds, came: Seconds) -> None:
        first = int(WARM_UP * len(came))
        self.latencies.append(latencies[first:])
        self.took += (came + latencies)[first:].max() - came[first]

    @property
    def figures(self) -> dict[str, float]:
        every = np.concatenate(self.latencies)
        p50, p99 = np.percentile(every, (50, 99)) * 1e3
        return {"per_s": len(every) / self.took, "p50_ms": p50, "p99_ms": p99}


def executed(triton: str) -> Figures:
    """Passes so far, and their seconds in all, by their items."""
    with grpcclient.InferenceServerClient(triton) as client:
        told = client.get_inference_statistics("qwen3_vl_embed").model_stats[0].batch_stats
    found = np.zeros((1 + SIZES[-1], 2))
    for each in told:
        found[each.batch_size] = each.compute_infer.count, each.compute_infer.ns / 1e9
    return found


def slowness(passes: Figures, times: Times) -> float:
    """What they took, over what they should take."""
    return passes[:, 1].sum() / sum(count * times.seconds(items) for items, (count, _) in enumerate(passes) if items)


def run_all(services: Services, rounds: int, seconds: float) -> dict:
    """The times of passes, and a row for each share of the capacity; `ratio` is measured over simulated."""
    given, marks = items(32, WORDS), list[Figures]()

    def passes() -> Times:
        marks.append(executed(services.triton))
        times = asyncio.run(measure(services.ours, given, seconds / 10))
        marks.append(executed(services.triton))
        return times

    passes()  # warm-up
    measured = [passes()]
    seen: dict[float, tuple[Seen, Seen, list[float]]] = {share: (Seen(), Seen(), []) for share in SHARES}
    for seed, share in enumerate(track(SHARES * rounds, "open loops", console=console, transient=True)):
        rate = share * measured[-1].capacity
        came = arrivals(rate, max(1, round(rate * seconds)), seed)
        texts = (load.request("/txt/embed", {"input": each.name}) for each in islice(given, len(came)))
        latencies = load.open_loop(services.ours, list(texts), rate, seconds, seed).latencies
        measured.append(passes())
        before, after = measured[-2:]
        times = Times(
            {size: (before.passes[size] + after.passes[size]) / 2 for size in before.passes},
            (before.delay + after.delay) / 2,
        )
        first, meanwhile, last = (later - earlier for earlier, later in pairwise(marks[-4:]))
        slower = slowness(meanwhile, times) / slowness(first + last, times)
        real, simulated, how_much = seen[share]
        real.add(latencies, came)
        slowed = Times({size: slower * took for size, took in times.passes.items()}, times.delay)
        simulated.add(simulate(slowed, came).latencies, came)
        how_much.append(slower)
    rows = [row(share, *found) for share, found in seen.items()]
    passes_s, delays_s = ([getattr(each, name) for each in measured] for name in ("passes", "delay"))
    return {"passes": passes_s, "delays_s": delays_s, "rows": rows}


def row(share: float, measured: Seen, simulated: Seen, slower: list[float]) -> dict:
    ratio = {name: value / simulated.figures[name] for name, value in measured.figures.items()}
    told = {"share": share, "requests": sum(map(len, measured.latencies)), "slower": slower}
    return {**told, "measured": measured.figures, "simulated": simulated.figures, "ratio": ratio}


@app.command(epilog="Example: python -m lab.benchmarks.sizing --checkpoint 100m")
def main(
    checkpoint: CheckpointOption = "100m",
    device: DeviceOption = "cpu",
    quick: QuickOption = False,
    results: ResultsOption = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each with an open loop of each share.")] = 5,
    seconds: Annotated[float, typer.Option(help="Of each open loop.")] = 30.0,
) -> None:
    """Compare what `qwen3-vl-embed size` predicts with what open loops measure."""
    run = Run("sizing", checkpoint, device, quick, results, f"--rounds {rounds} --seconds {seconds:g}")
    ceiling = run.ceiling()
    with running(run.folder, device, apart=True) as services:
        found = run_all(services, *(1, 1.0) if quick else (rounds, seconds))
    run.finish(ceiling, WORKLOAD, found)


if __name__ == "__main__":
    app()
