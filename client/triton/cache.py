"""Vectors that were computed before, and computations that are running now.

`VectorCache` remembers, bounded by bytes, least recently used out first; `SingleFlight` lets equal items in flight
share one computation. Both compare whole keys, with strong hashes in them.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from client.items import Embedding

V = TypeVar("V")

# The key (a tuple of the model's id and a digest of 32 bytes), the embedding with its array and its recipe, and the
# dictionary's slot: 720 bytes by RSS. Nothing of an item itself, its options included.
ENTRY_OVERHEAD_BYTES = 768


class VectorCache:
    """key -> embedding, of at most `max_bytes` in all, keys included. With 0 bytes it stores nothing."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, Embedding] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, key: Hashable) -> Embedding | None:
        """What is remembered under this key, or None."""
        if (found := self._entries.get(key)) is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return found

    def put(self, key: Hashable, embedding: Embedding) -> None:
        """Remember an embedding, in place of the longest unused ones."""
        size = embedding.vector.nbytes + ENTRY_OVERHEAD_BYTES
        if size > self._max_bytes:
            return
        if (replaced := self._entries.pop(key, None)) is not None:
            self.bytes -= replaced.vector.nbytes + ENTRY_OVERHEAD_BYTES
        self._entries[key] = embedding
        self.bytes += size
        while self.bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= oldest.vector.nbytes + ENTRY_OVERHEAD_BYTES

    def stats(self) -> dict[str, int]:
        """Hits, misses, entries, bytes, and the most bytes there may be."""
        return {
            "hits": self.hits,
            "misses": self.misses,
            "entries": len(self._entries),
            "bytes": self.bytes,
            "max_bytes": self._max_bytes,
        }


@dataclass(slots=True, eq=False)
class Flight(Generic[V]):
    """A computation that runs now. Wait for `task`, but never cancel it: leave the flight."""

    key: Hashable
    task: asyncio.Task[V]
    waiters: int = 0


class SingleFlight(Generic[V]):
    """Equal keys in flight share one computation; its error is everybody's error.

    It lives as long as anybody waits for it: the last one to leave cancels it.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight[V]] = {}

    def join(self, key: Hashable, compute: Callable[[], Coroutine[Any, Any, V]]) -> Flight[V]:
        """The computation for `key`, started by `compute` unless one is running. A caller who joins must leave."""
        if (flight := self._flights.get(key)) is None:
            flight = self._flights[key] = Flight(key, asyncio.create_task(compute()))
            flight.task.add_done_callback(partial(self._land, flight))
        flight.waiters += 1
        return flight

    def leave(self, flight: Flight[V]) -> None:
        """Wait no longer, whether it is done or not."""
        flight.waiters -= 1
        if not flight.waiters and not flight.task.done():
            flight.task.cancel()
            self._land(flight)

    def _land(self, flight: Flight[V], _: object = None) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # seen, even when the last waiter left in the same moment
