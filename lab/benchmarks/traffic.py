"""What is sent to the services, and in which ways: the benchmark's replay, closed and open loops, through or alone.

Two services take turns in each of them, so that a machine that is busy for a while slows both.
"""

import json
from collections import defaultdict
from statistics import median
from time import perf_counter

import numpy as np

from embedder import Embedder, parity
from lab.benchmarks import gpu, inputs, load
from lab.benchmarks.load import Load, request
from lab.benchmarks.results import track
from lab.benchmarks.services import Services
from qwen3_vl_embed.protocol import data_url

CALLERS = (1, 8, 32, 128)
RATES = (0.6, 0.8, 0.9)  # of the peak
SLICE = 64  # items that a service gets before the next one's turn; also the benchmark's batch (models.yaml)
SAME = 0.9999  # least cosine between the services' vectors
DIFFERENT = 256  # names, and swatches, of a loop: more than are in flight, of which equal ones are computed once


def names_and_swatches(count: int) -> dict[str, list[str]]:
    """`count` inputs of each endpoint, by its path."""
    return {
        "/txt/embed": inputs.names()[:count],
        "/img/embed": [data_url(inputs.swatch(index)) for index in range(count)],
    }


def half_and_half(count: int) -> list[bytes]:
    """`count` names and `count` swatches in turn, one input a request."""
    singles = [[request(path, {"input": item}) for item in items] for path, items in names_and_swatches(count).items()]
    return [each for pair in zip(*singles, strict=True) for each in pair]


def least_cosine(services: Services, count: int = 8) -> float:
    """Between the two services' vectors; also their warm-up."""
    assert services.plan
    requests = half_and_half(count)
    bodies = [load.replay(url, requests) for url in (services.ours, services.plan)]
    ours, theirs = (np.array([json.loads(body)["embedding"] for body in each]) for each in bodies)
    return parity.least_cosine(ours, theirs)


def replay(services: Services, count: int) -> dict[str, float]:
    """The colour benchmark's requests in its order; seconds of each way to serve them, a slice of each in turn."""
    assert services.plan
    took: dict[str, float] = defaultdict(float)
    work = [
        (path, items[start : start + SLICE])
        for path, items in names_and_swatches(count).items()
        for start in range(0, count, SLICE)
    ]
    for path, items in track(work, "replay"):
        singles = [request(path, {"input": item}) for item in items]
        for way, url, requests in (
            ("plan_s", services.plan, singles),
            ("ours_s", services.ours, singles),
            ("ours_batched_s", services.ours, [request(path, {"input": items})]),
        ):
            started = perf_counter()
            load.replay(url, requests)
            took[way] += perf_counter() - started
    return {
        "requests": 2 * count,
        **took,
        "plan_over_ours": took["plan_s"] / took["ours_s"],
        "plan_over_ours_batched": took["plan_s"] / took["ours_batched_s"],
    }


def loops(services: Services, seconds: float, rounds: int) -> dict[str, list[dict]]:
    """Closed loops, then open ones at rates that the closed ones found."""
    assert services.plan
    urls, requests = {"ours": services.ours, "plan": services.plan}, half_and_half(DIFFERENT)
    rows = closed(urls, requests, seconds, rounds)
    return {"closed": rows, "open": arrivals(urls, requests, rows, seconds)}


def closed(urls: dict[str, str], requests: list[bytes], seconds: float, rounds: int) -> list[dict]:
    """Requests a second and latencies of both services at each number of callers."""
    loads: dict[tuple[int, str], list[Load]] = defaultdict(list)
    turns = [(callers, name) for callers in CALLERS for _ in range(rounds) for name in urls]
    for callers, name in track(turns, "closed loops"):
        loads[callers, name].append(load.closed(urls[name], requests, callers, seconds))
    return [
        {"callers": callers, "service": name, **load.merged(each).figures()} for (callers, name), each in loads.items()
    ]


def arrivals(urls: dict[str, str], requests: list[bytes], closed_rows: list[dict], seconds: float) -> list[dict]:
    """Open loops at shares of each service's own best closed loop."""
    best = {name: max(row["requests_per_s"] for row in closed_rows if row["service"] == name) for name in urls}
    rows = []
    for share in track(RATES, "open loops"):
        for name, url in urls.items():
            rate = share * best[name]
            found = load.open_loop(url, requests, rate, seconds).figures()
            rows.append({"share_of_peak": share, "rate": rate, "service": name, **found})
    return rows


def survival(services: Services, embedder: Embedder, seconds: float, rounds: int, callers: int = 32) -> dict:
    """Requests a second at `callers` through everything, as a share of the embedder alone in batches of as many."""
    requests, batch = half_and_half(DIFFERENT), inputs.half_and_half(callers)
    through, alone = [], []
    embedder.embed(batch)
    load.closed(services.ours, requests, callers, seconds / 2)  # warm-up
    for _ in track(range(rounds), "through everything and alone"):
        through.append(load.closed(services.ours, requests, callers, seconds).figures()["requests_per_s"])
        started, calls = perf_counter(), 0
        while (took := perf_counter() - started) < seconds:
            embedder.embed(batch)
            calls += 1
        alone.append(calls * callers / took)
    whole, bare = median(through), median(alone)
    return {"callers": callers, "through_per_s": whole, "alone_per_s": bare, "share": whole / bare}


def busy(services: Services, device: str, seconds: float, callers: int = 128) -> float | None:
    """How busy the GPU is, 0…1, while `callers` send swatches through everything; None without a GPU."""
    requests = [request("/img/embed", {"input": url}) for url in names_and_swatches(DIFFERENT)["/img/embed"]]
    load.closed(services.ours, requests, callers, 1.0)
    with gpu.busy(device) as found:
        load.closed(services.ours, requests, callers, seconds)
    return found[0] if found else None
