"""What becomes of callers when four times as many come as can be served.

    python -m lab.benchmarks.overload --checkpoint tiny

Requests arrive at random (open loop) at the adapter's limits as they are shipped and with its cache off. The peak is
the most that is answered of any rate around that of the best closed loop; then four times the peak arrives. The closed
loop's own rate is told beside it. Its callers ask again all at once, when a batch is answered. That costs the adapter a
third less than arrivals one by one, at any rate. Goodput is what got a 200, counted once the queue is full; latency
counts from the planned arrival. A 429 must name a time to come back, and come fast. Memory is that of all processes of
the stack. The client has the machine's last core for itself and the stack has the others, at the peak as beyond it.
What a client spends on asking four times as much is not the stack's loss.
"""

import resource
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import count, cycle, islice
from time import perf_counter, process_time
from typing import Annotated

import numpy as np
import typer
import uvloop

from client.settings import Settings
from lab.benchmarks import inputs, load, soak
from lab.benchmarks.load import request
from lab.benchmarks.results import CheckpointOption, DeviceOption, QuickOption, ResultsOption, Run, track
from lab.benchmarks.services import running
from qwen3_vl_embed.protocol import data_url

CALLERS = (32, 128)
AROUND = (0.75, 1.0, 1.25)  # of the best closed loop: where the peak is looked for
MOST_CONNECTIONS = 3500  # fewer than the adapter takes, and far more than may wait inside it
PATIENCE_SECONDS = 65  # after the last arrival; longer than any deadline
TIMES = (4.0, 4.0)  # of the peak; twice, since what memory grows to is seen once, and a leak twice
TEMPLATES = 64  # of each kind, before they are made different
PHOTO = (448, 448)
MARK = b"MARKMARK"  # letters that base64 has too
SECONDS, ANSWERS = 10.0, 500  # counted, and at least: answers come by batches, of which a window must hold many
FILL_SECONDS = 6.0  # until goodput is steady; longer where that does not fill the queue
WAITING = Settings.model_fields["max_pending_items"].default
WORKLOAD = "one input a request at the adapter's own limits, its cache off; the client on a core of its own"
app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Kind(StrEnum):
    """What is sent."""

    PHOTOS = "photos"
    COLOURS = "colours"


def requests(kind: Kind) -> Iterator[bytes]:
    """One input each, and no two the same: equal ones in flight would be computed once.

    A number that the model reads in a text, and that lies behind the end of an image, where no decoder looks.
    """
    templates = cycle(list(_templates(kind)))
    for number in count():
        yield next(templates).replace(MARK, b"%08d" % number)


def _templates(kind: Kind) -> Iterator[bytes]:
    for index in range(TEMPLATES):
        if kind is Kind.COLOURS:
            yield request("/txt/embed", {"input": f"{inputs.names()[index]} {MARK.decode()}"})
        image = inputs.swatch(index) if kind is Kind.COLOURS else inputs.picture(PHOTO, index)
        whole = image + bytes(-len(image) % 3)  # so that its base64 has no padding and can go on
        yield request("/img/embed", {"input": data_url(whole) + MARK.decode()})


def milliseconds(latencies: Iterable[float]) -> dict[str, float | None]:
    """Their median and 99th percentile; None where there were none."""
    values = list(latencies)
    p50, p99 = np.percentile(values, (50, 99)) * 1e3 if values else (None, None)
    return {"p50_ms": p50, "p99_ms": p99}


def memory_mib() -> float:
    """Of all processes of the stack together."""
    return sum(process.memory_info().rss for process in soak.stack()) / soak.MIB


def overload(url: str, contents: Iterator[bytes], rate: float, seconds: float, fill: float) -> dict:
    """One open loop's figures; goodput is counted between the filling of the queue and the last arrival."""
    before, cpu, started = memory_mib(), process_time(), perf_counter()
    outcomes = uvloop.run(load.arrive(url, contents, rate, fill + seconds, MOST_CONNECTIONS, PATIENCE_SECONDS))
    good = [each for each in outcomes if each.status == 200]
    refused = [each for each in outcomes if each.status == 429]
    return {
        "rate": rate,
        "goodput_per_s": sum(fill <= each.ended < fill + seconds for each in good) / seconds,
        "answers": dict(sorted(Counter(str(each.status) for each in outcomes).items())),
        "good": milliseconds(each.latency for each in good),
        "refused": milliseconds(each.latency for each in refused),
        "refusals_that_say_when": sum(each.says_when for each in refused),
        "memory_mib": [before, memory_mib()],
        "client_cores": (process_time() - cpu) / (perf_counter() - started),
    }


def measure(url: str, kind: Kind, quick: bool) -> dict:
    """The peak, and what is left of it at each of its multiples."""
    contents = requests(kind)
    seconds, fill = (0.5, 0.2) if quick else (SECONDS, FILL_SECONDS)
    some = list(islice(contents, 4 * max(CALLERS)))
    load.closed(url, some, CALLERS[0], seconds / 5)  # warm-up
    closed = {callers: load.closed(url, some, callers, seconds / 2).figures() for callers in CALLERS}
    most = max(each["requests_per_s"] for each in closed.values())
    seconds = seconds if quick else max(seconds, ANSWERS / most)
    rows: list[dict] = []
    for times in track((*AROUND, *TIMES), "open loops"):
        peak = max((row["goodput_per_s"] for row in rows[: len(AROUND)]), default=most)
        if len(rows) < len(AROUND):
            rows.append(overload(url, contents, times * most, seconds, fill))
        else:
            until_full = 0 if quick else 1.2 * WAITING / ((times - 1) * peak)
            rows.append(overload(url, contents, times * peak, seconds, max(fill, until_full)))
    for row in rows:
        row |= {"times": row["rate"] / peak, "share_of_peak": row["goodput_per_s"] / peak}
    return {"kind": kind.value, "peak_per_s": peak, "closed": closed, "closed_per_s": most, "open": rows}


@app.command(epilog="Example: python -m lab.benchmarks.overload --checkpoint tiny --kind colours")
def main(
    checkpoint: CheckpointOption = "tiny",
    device: DeviceOption = "cpu",
    quick: QuickOption = False,
    results: ResultsOption = None,
    kind: Annotated[list[Kind] | None, typer.Option(help="Send only these [default: all].")] = None,
) -> None:
    """Send more than can be served, and tell what became of it."""
    run = Run("overload", checkpoint, device, quick, results, " ".join(f"--kind {each.value}" for each in kind or []))
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    ceiling = run.ceiling()
    with running(run.folder, device, apart=True) as services:
        found = [measure(services.ours, each, quick) for each in kind or list(Kind)]
    run.finish(ceiling, WORKLOAD, {"kinds": found})


if __name__ == "__main__":
    app()
