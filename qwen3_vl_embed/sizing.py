"""How many GPUs a load needs: a simulation of requests that arrive at random, wait, and go through passes together.

A GPU is a server of batches behind a queue. When it is free it takes what waits, first come, first served, up to what a
pass holds. config.pbtxt has no queue delay, so a lone request goes at once. A pass of n items takes what was measured
for n, linear between the sizes that were. What else a request takes, on its way and in the adapter, is a delay that
holds nobody up. Of several GPUs, a request goes to the one with the fewest items before it.

Left out are items that differ, restarts, and refusals (429), which begin far beyond the latencies that one accepts. The
adapter's own queue is left out too. It counts where a GPU does more than some 800 items a second.
"""

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

SIZES = (1, 4, 16, 64)  # items of the passes that are measured; 64 is config.pbtxt's max_batch_size
WARM_UP = 0.1  # share of the arrivals that fill the queue and are not counted
FULL = 0.95  # share of the capacity beyond which the length of a queue is chance
LEAST_REQUESTS, SPAN = 20_000, 50  # simulated: at least so many, and for so many times the longest of pass and p99
MOST_STEPS = 10**9  # requests times GPUs, and a hundred more: a minute or so for each fleet
ROUNDING = 1 + 1e-9  # a p99 may be what one item alone takes

Seconds = NDArray[np.float64]  # (N,), one for each request


@dataclass(frozen=True)
class Times:
    """What one GPU takes, in seconds: `passes` by their items, and `delay` of a request beside them."""

    passes: Mapping[int, float]
    delay: float = 0.0

    @classmethod
    def of(cls, rates: Mapping[int, float], most: int = SIZES[-1]) -> Self:
        """From requests a second of closed loops, by their callers: 1, and twice each size of `sizes(most)`.

        Of 2n callers, n are in a pass while the others come back and wait: so a pass of n takes n / rate. What one
        caller waits for beyond a pass of one is the delay.
        """
        passes = {size: size / rates[2 * size] for size in sizes(most)}
        return cls(passes, max(0.0, 1 / rates[1] - passes[1]))

    def seconds(self, items: int) -> float:
        """Of a pass of so many, up to `most`."""
        return float(np.interp(items, list(self.passes), list(self.passes.values())))

    @property
    def most(self) -> int:
        """Items of a pass."""
        return max(self.passes)

    @property
    def capacity(self) -> float:
        """Items a second, with passes of the size that makes the most of them."""
        return max(items / seconds for items, seconds in self.passes.items())


def sizes(most: int) -> list[int]:
    """The passes that are measured where one holds at most so many items."""
    return sorted({1, most} | {size for size in SIZES if size < most})


def rate(ends: Seconds, callers: int, until: float) -> float:
    """Answers a second of a closed loop: from when each caller has had one, to the last until then.

    `ends`: when each was answered, ascending. A pass answers in a burst, so both ends of the time are ends of bursts.
    Else there may be a pass more or less in it, and of two passes that is half. A burst has ended where nothing comes
    for a quarter of what a usual pass takes. Where bursts run into each other, all answers count alike.
    """
    first, last = callers - 1, int(np.searchsorted(ends, until, "right")) - 1
    usual = callers / 2 * (ends[-1] - ends[0]) / len(ends)
    over = np.append(np.flatnonzero(np.diff(ends) > usual / 4), len(ends) - 1)  # the last answer of each burst
    begin, end = over[np.searchsorted(over, (first, last))]
    if begin < end:
        first, last = begin, end
    return float((last - first) / (ends[last] - ends[first]))


def arrivals(rate: float, count: int, seed: int = 0) -> Seconds:
    """Times of `count` random (Poisson) arrivals, `rate` a second on average."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


@dataclass(frozen=True)
class Found:
    """What became of the requests: their latencies in seconds, in order of arrival, and the items of each pass."""

    latencies: Seconds
    passes: Sequence[int]

    def percentile(self, share: float) -> float:
        """Seconds; of what came after the queues had filled."""
        return float(np.percentile(self.latencies[int(WARM_UP * len(self.latencies)) :], share))


def simulate(times: Times, came: Seconds, gpus: int = 1) -> Found:
    """Requests of one item each, which came at these times in seconds, ascending."""
    takes = [0.0, *(times.seconds(items) for items in range(1, times.most + 1))]
    queues: list[deque[int]] = [deque() for _ in range(gpus)]
    load = [0] * gpus  # items that wait or are in a pass
    ended = np.empty(len(came))
    under_way: list[tuple[float, int, list[int]]] = []  # passes, by their end
    passes: list[int] = []

    def begin(gpu: int, now: float) -> None:
        batch = [queues[gpu].popleft() for _ in range(min(times.most, len(queues[gpu])))]
        passes.append(len(batch))
        heapq.heappush(under_way, (now + takes[len(batch)], gpu, batch))

    def end() -> None:
        now, gpu, batch = heapq.heappop(under_way)
        load[gpu] -= len(batch)
        ended[batch] = now
        if queues[gpu]:
            begin(gpu, now)

    for request, now in enumerate(came.tolist()):
        while under_way and under_way[0][0] <= now:
            end()
        gpu = load.index(min(load))
        queues[gpu].append(request)
        load[gpu] += 1
        if load[gpu] == 1:
            begin(gpu, now)
    while under_way:
        end()
    return Found(ended - came + times.delay, passes)


class Fleet(NamedTuple):
    """So many GPUs, and what a load finds there."""

    gpus: int
    found: Found


def needed(times: Times, rate: float, p99: float, seed: int = 0) -> list[Fleet]:
    """Fleets of growing size, the last of them the smallest whose p99 is at most so many seconds at that rate.

    `rate`: items a second, which arrive one by one. Empty where a lone item takes longer than that on an idle GPU.

    Raises:
        ValueError: it would not end in minutes.
    """
    if times.delay + times.seconds(1) > ROUNDING * p99:
        return []
    count = max(LEAST_REQUESTS, ceil(SPAN * rate * max(p99, times.seconds(times.most))))
    gpus = ceil(rate / (FULL * times.capacity))
    if count * (gpus + 100) > MOST_STEPS:
        raise ValueError(
            f"{count:,} requests on {gpus:,} GPUs or more are too many to simulate: "
            "ask for a tenth of --rate and take ten times its GPUs, or for a smaller --p99."
        )
    came = arrivals(rate, count, seed)
    tried = [Fleet(gpus, simulate(times, came, gpus))]
    while tried[-1].found.percentile(99) > ROUNDING * p99:
        gpus += max(1, gpus // 50)
        tried.append(Fleet(gpus, simulate(times, came, gpus)))
    return tried
