"""The vector cache and shared computations."""

import asyncio
import gc
import tracemalloc

import numpy as np
import pytest

from client.errors import Overloaded
from client.items import Embedding, EmbedInput, Recipe
from client.triton.cache import ENTRY_OVERHEAD_BYTES, SingleFlight, VectorCache
from tests.in_process import adapter

VECTOR = np.arange(4, dtype=np.float32)
EMBEDDING = Embedding(VECTOR, {"id": "m"}, Recipe("abc", ("doubtful",)), tokens=3)
ENTRY = VECTOR.nbytes + ENTRY_OVERHEAD_BYTES


def test_an_embedding_comes_back_as_it_was():
    cache = VectorCache(10 * ENTRY)
    cache.put("a", EMBEDDING)
    assert cache.get("a") is EMBEDDING


def test_hits_misses_entries_and_bytes_are_counted():
    cache = VectorCache(10 * ENTRY)
    assert cache.get("a") is None
    cache.put("a", EMBEDDING)
    cache.put("a", EMBEDDING)  # again: replaced, not added
    cache.get("a")
    assert cache.stats() == {"hits": 1, "misses": 1, "entries": 1, "bytes": ENTRY, "max_bytes": 10 * ENTRY}


def test_the_longest_unused_goes_first():
    cache = VectorCache(2 * ENTRY)
    cache.put("a", EMBEDDING)
    cache.put("b", EMBEDDING)
    cache.get("a")
    cache.put("c", EMBEDDING)
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.get("c") is not None
    assert cache.stats()["bytes"] == 2 * ENTRY


@pytest.mark.parametrize("max_bytes", [0, ENTRY - 1])
def test_what_is_too_large_is_not_stored(max_bytes):
    cache = VectorCache(max_bytes)
    cache.put("a", EMBEDDING)
    assert cache.get("a") is None
    assert cache.stats()["bytes"] == 0


def test_bytes_stay_within_the_limit_when_sizes_differ():
    cache = VectorCache(20 * ENTRY)
    for index in range(500):
        cache.put(index % 37, EMBEDDING._replace(vector=np.zeros(1 + index % 900, dtype=np.float32)))
        assert cache.stats()["bytes"] <= 20 * ENTRY
    cache.put("small", EMBEDDING)
    assert cache.get("small") is not None


def test_a_digest_tells_kinds_contents_and_options_apart():
    items = [
        EmbedInput(b"red"),
        EmbedInput(image=b"red"),
        EmbedInput(b"r", b"ed"),
        EmbedInput(b"red "),
        EmbedInput(b"", b"", b"red"),
        EmbedInput(b"red", options=b'{"pooling":"mean"}'),
        EmbedInput(b"red", options=b'{"instruction":"x"}'),
    ]
    assert len({item.digest for item in items}) == len(items)
    assert EmbedInput(b"red", param="input[3]").digest == items[0].digest


async def test_what_is_told_is_what_is_held_whatever_the_options(stack):
    """Instructions of 3.5 kB, no two the same: the cache holds vectors and digests. No layer runs for them."""
    async with adapter(stack.triton_grpc) as http:

        async def ask(numbers: range) -> None:
            for number in numbers:
                options = {"instruction": f"{number} {'colour ' * 500}", "dimensions": 8, "layer": 0}
                response = await http.post("/txt/embed", json={"input": "red", **options})
                assert response.status_code == 200

        await ask(range(10))  # what is made once, is made
        told = http.app.state.cache.bytes
        gc.collect()
        tracemalloc.start()
        try:
            await ask(range(10, 50))
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert held <= 2 * (http.app.state.cache.bytes - told) + 2**16  # which Python and the server keep besides


class Work:
    """A computation that counts its starts and ends when it is told to."""

    def __init__(self) -> None:
        self.started, self.cancelled = 0, 0
        self.result: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> str:
        self.started += 1
        try:
            return await self.result
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def run(flights: SingleFlight[str], key: str, work: Work) -> str:
    flight = flights.join(key, work)
    try:
        await asyncio.wait({flight.task})
        return flight.task.result()
    finally:
        flights.leave(flight)


async def waiters(flights: SingleFlight[str], work: Work, count: int) -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(run(flights, "key", work)) for _ in range(count)]
    await asyncio.sleep(0.01)
    return tasks


async def test_equal_keys_share_one_computation():
    flights, work = SingleFlight(), Work()
    tasks = await waiters(flights, work, 5)
    work.result.set_result("vector")
    assert await asyncio.gather(*tasks) == ["vector"] * 5
    assert work.started == 1
    assert flights._flights == {}


async def test_different_keys_do_not():
    flights, one, two = SingleFlight(), Work(), Work()
    tasks = [asyncio.create_task(run(flights, key, work)) for key, work in (("a", one), ("b", two))]
    one.result.set_result("a")
    two.result.set_result("b")
    assert await asyncio.gather(*tasks) == ["a", "b"]


async def test_an_error_is_everybodys_and_is_not_kept():
    flights, work = SingleFlight(), Work()
    tasks = await waiters(flights, work, 3)
    work.result.set_exception(Overloaded("full"))
    assert {type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)} == {Overloaded}
    again = Work()
    again.result.set_result("vector")
    assert await run(flights, "key", again) == "vector"


async def test_a_waiter_that_leaves_takes_nothing_from_the_others():
    flights, work = SingleFlight(), Work()
    first, second, third = await waiters(flights, work, 3)
    first.cancel()  # the one that started it
    third.cancel()
    await asyncio.sleep(0.01)
    work.result.set_result("vector")
    assert await second == "vector"
    assert first.cancelled()
    assert third.cancelled()
    assert (work.started, work.cancelled) == (1, 0)


async def test_the_last_waiter_that_leaves_cancels_the_computation():
    flights, work = SingleFlight(), Work()
    for task in await waiters(flights, work, 2):
        task.cancel()
    await asyncio.sleep(0.01)
    assert work.cancelled == 1
    assert flights._flights == {}


async def test_who_comes_after_the_last_left_starts_anew():
    flights, work, again = SingleFlight(), Work(), Work()
    (task,) = await waiters(flights, work, 1)
    task.cancel()
    await asyncio.wait([task])  # it has left; the computation is told, but may not be over yet
    again.result.set_result("vector")
    assert await run(flights, "key", again) == "vector"
    assert again.started == 1
