"""Requests that arrive at random, whatever becomes of those before them, and what became of each.

Knows HTTP/1.1 with Content-Length, as load.py does, and takes every status for an answer.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from lab.benchmarks.load import LENGTH, Connection

MOST_CONNECTIONS = 3500  # fewer than the adapter takes, and far more than may wait inside it
PATIENCE_SECONDS = 65  # after the last arrival; longer than any deadline


@dataclass(frozen=True)
class Outcome:
    """Of one request; seconds since the start."""

    status: int  # 0: no answer, or the connection broke
    planned: float
    answered: float
    says_when: bool  # a Retry-After

    @property
    def latency(self) -> float:
        return self.answered - self.planned


class Asking(Connection):
    """A connection that tells every status instead of failing for most."""

    async def ask(self, content: bytes) -> tuple[int, bool]:
        """The status, and whether the answer says when to come back."""
        self._writer.write(content)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        await self._reader.readexactly(int(length[1]) if length else 0)
        return int(head.split(maxsplit=2)[1]), b"\r\nretry-after:" in head.lower()


class Arrivals:
    """Requests that come at random times, `rate` a second, whatever becomes of those before them."""

    def __init__(self, url: str, contents: Iterator[bytes], rate: float, seconds: float) -> None:
        self._url, self._contents = url, contents
        gaps = np.random.default_rng(0).exponential(1 / rate, max(1, round(rate * seconds)))
        self._planned = np.cumsum(gaps)
        self._idle: list[Asking] = []
        self._slots = asyncio.Semaphore(MOST_CONNECTIONS)
        self.outcomes: list[Outcome] = []

    async def run(self) -> None:
        """Returns when each is answered, or nobody would wait any more."""
        self._started, tasks = perf_counter(), set()
        for planned in self._planned:
            await asyncio.sleep(max(0.0, self._started + planned - perf_counter()))
            tasks.add(asyncio.create_task(self._one(next(self._contents), planned)))
        _, waiting = await asyncio.wait(tasks, timeout=PATIENCE_SECONDS)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # a connection that broke is an outcome too
        for connection in self._idle:
            connection.close()
        self.outcomes += [Outcome(0, 0.0, PATIENCE_SECONDS, False)] * (len(tasks) - len(self.outcomes))

    async def _one(self, content: bytes, planned: float) -> None:
        async with self._slots:
            while self._idle and self._idle[-1].hung_up:
                self._idle.pop().close()
            connection = self._idle.pop() if self._idle else await Asking.open(self._url)
            status, says_when = await connection.ask(content)
            self._idle.append(connection)
        self.outcomes.append(Outcome(status, planned, perf_counter() - self._started, says_when))
