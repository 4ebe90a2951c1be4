"""An HTTP load client too cheap to be what is measured: keep-alive connections, and requests built beforehand.

Closed loop: so many callers, each sends its next request when the last one is answered. Open loop: requests arrive at
random (Poisson) whatever the server does. Latency counts from the planned arrival, so a server that stalls does not
also stop the clock. It speaks HTTP/1.1 with Content-Length, nothing else. An answer that is not 200 is an error, but
for `arrive`, which tells what became of each request.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter, process_time
from typing import NamedTuple, Self
from urllib.parse import urlsplit

import numpy as np

from qwen3_vl_embed.sizing import arrivals

try:
    import orjson
    import uvloop
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


class Answer(NamedTuple):
    """To one request."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head.split(maxsplit=2)[1])

    @property
    def says_when(self) -> bool:
        """Whether it has a Retry-After."""
        return b"\r\nretry-after:" in self.head.lower()

    def __str__(self) -> str:
        return (self.head.splitlines()[0] + b": " + self.body[:200]).decode(errors="replace")


class Connection:
    """One keep-alive connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, url: str) -> Self:
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port))

    async def ask(self, request: bytes) -> Answer:
        """Send a whole request; whatever it is answered with."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        return Answer(head, await self._reader.readexactly(int(length[1]) if length else 0))

    async def send(self, request: bytes) -> bytes:
        """Send a whole request; the body of its answer, which must be a 200."""
        answer = await self.ask(request)
        if answer.status != 200:
            raise LoadError(str(answer))
        return answer.body

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

    async def run(latencies: list[float]) -> None:
        for outcome in await arrive(url, cycle(requests), rate, seconds, seed=seed):
            if outcome.failure:
                raise LoadError(outcome.failure)
            latencies.append(outcome.latency)

    return _timed(run)


@dataclass(frozen=True)
class Outcome:
    """Of one request; seconds since the start."""

    planned: float
    ended: float
    status: int = 0  # 0: there is no answer
    says_when: bool = False  # a Retry-After
    failure: str = ""  # the answer, where it is not 200, or how the connection broke; none for who still waits

    @property
    def latency(self) -> float:
        return self.ended - self.planned


async def arrive(
    url: str,
    requests: Iterator[bytes],
    rate: float,
    seconds: float,
    connections: int = MOST_CONNECTIONS,
    patience: float = DRAIN_SECONDS,
    seed: int = 0,
) -> list[Outcome]:
    """An open loop over at most so many connections; `patience`: seconds that it waits after the last arrival."""
    opened: list[Connection] = []
    idle: list[Connection] = []
    slots = asyncio.Semaphore(connections)
    started = perf_counter()

    async def one(content: bytes, planned: float) -> Outcome:
        try:
            async with slots:
                while idle and idle[-1].hung_up:
                    idle.pop()
                if idle:
                    connection = idle.pop()
                else:
                    connection = await Connection.open(url)
                    opened.append(connection)
                answer = await connection.ask(content)
                idle.append(connection)
        except (OSError, EOFError) as error:
            return Outcome(planned, perf_counter() - started, failure=repr(error))
        failure = "" if answer.status == 200 else str(answer)
        return Outcome(planned, perf_counter() - started, answer.status, answer.says_when, failure)

    tasks = {}
    for planned in arrivals(rate, max(1, round(rate * seconds)), seed).tolist():
        await asyncio.sleep(max(0.0, started + planned - perf_counter()))
        tasks[asyncio.create_task(one(next(requests), planned))] = planned
    answered, waiting = await asyncio.wait(tasks, timeout=patience)
    for task in waiting:
        task.cancel()
    for connection in opened:
        connection.close()
    now = perf_counter() - started
    return [task.result() if task in answered else Outcome(planned, now) for task, planned in tasks.items()]


def _timed(run: Callable[[list[float]], Coroutine[None, None, None]]) -> Load:
    latencies: list[float] = []
    started, cpu = perf_counter(), process_time()
    uvloop.run(run(latencies))
    return Load(np.array(latencies), perf_counter() - started, process_time() - cpu)
