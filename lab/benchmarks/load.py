"""An HTTP load client too cheap to be what is measured: keep-alive connections, and requests built beforehand.

Closed loop: so many callers, each sends its next request when the last one is answered. Open loop: requests arrive at
random (Poisson) whatever the server does, and latency counts from the planned arrival, so a server that stalls does not
also stop the clock. It knows HTTP/1.1 with Content-Length and nothing else; an answer that is not 200 is an error.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from itertools import cycle, islice
from time import perf_counter, process_time
from typing import Self
from urllib.parse import urlsplit

import numpy as np

try:
    import orjson
    import uvloop

    from lab.benchmarks import null_server
except ModuleNotFoundError as missing:  # a machine with the model's packages alone
    raise SystemExit(
        f"{missing.name} is not installed: what asks a served model needs requirements/client.txt. "
        "How busy the GPU is can be measured without them: python -m lab.benchmarks.gpu_check --only 10"
    ) from missing

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
MOST_CONNECTIONS = 512  # of an open loop; a server that is so far behind is beyond its peak
DRAIN_SECONDS = 20  # that an open loop waits after its last arrival; what waits longer counts with the time so far


class LoadError(Exception):
    """The server answered something else than 200; the message has its status and body."""


class Connection:
    """One keep-alive connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, url: str) -> Self:
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port))

    async def send(self, request: bytes) -> bytes:
        """A whole request; the body of its answer."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        body = await self._reader.readexactly(int(length[1]) if length else 0)
        if not head.startswith(b"HTTP/1.1 200"):
            raise LoadError((head.splitlines()[0] + b": " + body[:200]).decode(errors="replace"))
        return body

    @property
    def hung_up(self) -> bool:
        """Whether the server has closed it, as servers do with idle ones (uvicorn, the plan's, after 5 s)."""
        return self._reader.at_eof()

    def close(self) -> None:
        self._writer.close()


def request(path: str, body: dict) -> bytes:
    """A POST as it goes over the wire."""
    content = orjson.dumps(body)
    head = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join((*head, f"Content-Length: {len(content)}", "", "")).encode() + content


@dataclass(frozen=True)
class Load:
    """What a load saw: a latency in seconds for each request, how long it all took, and the client's own CPU time."""

    latencies: np.ndarray
    seconds: float
    client_cpu: float

    def figures(self) -> dict[str, float]:
        p50, p95, p99 = np.percentile(self.latencies, (50, 95, 99)) * 1e3
        per_request = self.client_cpu / len(self.latencies)
        return {
            "requests_per_s": len(self.latencies) / self.seconds,
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "client_us": per_request * 1e6,  # of CPU time, for each request
        }


def merged(loads: list[Load]) -> Load:
    """Several loads of the same kind as one."""
    latencies = np.concatenate([each.latencies for each in loads])
    return Load(latencies, sum(each.seconds for each in loads), sum(each.client_cpu for each in loads))


def replay(url: str, requests: list[bytes]) -> list[bytes]:
    """Each request once, one after the other: the answers' bodies."""

    async def run() -> list[bytes]:
        connection = await Connection.open(url)
        try:
            return [await connection.send(each) for each in requests]
        finally:
            connection.close()

    return uvloop.run(run())


def closed(url: str, requests: list[bytes], callers: int, seconds: float) -> Load:
    """`callers` at once for `seconds`, taking the requests in turn, over and over."""
    turns = cycle(requests)

    async def caller(latencies: list[float], stop: float) -> None:
        connection = await Connection.open(url)
        while (started := perf_counter()) < stop:
            await connection.send(next(turns))
            latencies.append(perf_counter() - started)
        connection.close()

    async def run(latencies: list[float]) -> None:
        stop = perf_counter() + seconds
        await asyncio.gather(*(caller(latencies, stop) for _ in range(callers)))

    return _timed(run)


def open_loop(url: str, requests: list[bytes], rate: float, seconds: float, seed: int = 0) -> Load:
    """Requests at random times, `rate` a second on average."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, max(1, round(rate * seconds))))
    return _timed(lambda latencies: _arrive(url, islice(cycle(requests), len(arrivals)), arrivals, latencies))


async def _arrive(url: str, requests: Iterable[bytes], arrivals: np.ndarray, latencies: list[float]) -> None:
    idle: list[Connection] = []
    slots = asyncio.Semaphore(MOST_CONNECTIONS)

    async def one(content: bytes, planned: float) -> None:
        async with slots:
            while idle and idle[-1].hung_up:
                idle.pop().close()
            connection = idle.pop() if idle else await Connection.open(url)
            await connection.send(content)
            idle.append(connection)
        latencies.append(perf_counter() - planned)

    started, tasks = perf_counter(), {}
    for content, arrival in zip(requests, arrivals, strict=True):
        await asyncio.sleep(max(0.0, started + arrival - perf_counter()))
        tasks[asyncio.create_task(one(content, started + arrival))] = started + arrival
    answered, waiting = await asyncio.wait(tasks, timeout=DRAIN_SECONDS)
    for task in answered:
        task.result()
    for task in waiting:
        task.cancel()
        latencies.append(perf_counter() - tasks[task])
    for connection in idle:
        connection.close()


def _timed(run: Callable[[list[float]], Coroutine[None, None, None]]) -> Load:
    latencies: list[float] = []
    started, cpu = perf_counter(), process_time()
    uvloop.run(run(latencies))
    return Load(np.array(latencies), perf_counter() - started, process_time() - cpu)


def own_cost(requests: list[bytes], answer: bytes, callers: int, seconds: float) -> dict[str, float]:
    """The client against a server that does nothing but answer."""
    with null_server.running(answer) as url:
        return closed(url, requests, callers, seconds).figures()
