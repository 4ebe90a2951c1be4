"""From the items of one request to their vectors: cache, admission, fan-out, shared computations, one repeat.

Knows neither HTTP nor tensors. One item is one request to Triton, all at once: Triton makes the batches.
"""

import asyncio
from functools import partial

from client.admission import Admission
from client.cache import Flight, SingleFlight, VectorCache
from client.errors import ApiError, DeadlinePassed, Unavailable
from client.items import Embedding, EmbedInput
from client.readiness import Readiness
from client.triton_client import TritonClient


class Dispatcher:
    """Embeds the items of all requests of this process."""

    def __init__(
        self,
        client: TritonClient,
        readiness: Readiness,
        cache: VectorCache,
        admission: Admission,
        max_concurrency: int,
        deadline_seconds: float,
    ) -> None:
        self._client = client
        self._readiness = readiness
        self._cache = cache
        self._flights: SingleFlight[Embedding] = SingleFlight()
        self._slots = asyncio.Semaphore(max_concurrency)
        # Each caller's own deadline ends his waiting; a computation that others have joined since must outlive his.
        self._seconds = 2 * deadline_seconds
        self._admission = admission

    async def embed(self, items: list[EmbedInput], request_id: str, seconds: float) -> list[Embedding]:
        """One embedding for each item, in order; nobody waits for longer than `seconds`.

        When one item fails, the others are cancelled.

        Raises:
            ApiError: of the item that failed; `param` names it.
        """
        embeddings = [self._cached(item) for item in items]
        missing = [index for index, embedding in enumerate(embeddings) if embedding is None]
        if missing:
            with self._admission.admitted(len(missing), seconds):
                computed = await self._embed_all([items[index] for index in missing], request_id)
            for index, embedding in zip(missing, computed, strict=True):
                embeddings[index] = embedding
        return _of_one_model([embedding for embedding in embeddings if embedding is not None])

    async def render(self, item: EmbedInput, request_id: str, seconds: float) -> Embedding:
        """One item that asks how it is rendered: computed, never cached, since no vector is wanted."""
        with self._admission.admitted(1, seconds):
            return await self._compute(item, request_id)

    def _cached(self, item: EmbedInput) -> Embedding | None:
        model = self._readiness.model
        if model is None or (cached := self._cache.get((model["id"], *item.identity))) is None:
            return None
        return Embedding(cached.vector, model, cached.recipe)

    async def _embed_all(self, items: list[EmbedInput], request_id: str) -> list[Embedding]:
        flights, shared = [], []
        try:
            for item in items:
                flights.append(self._flights.join(item.identity, partial(self._compute_and_remember, item, request_id)))
                shared.append(flights[-1].waiters > 1)
            await asyncio.wait({flight.task for flight in flights}, return_when=asyncio.FIRST_EXCEPTION)
            for item, flight in zip(items, flights, strict=True):
                _raise_failure(flight, item)
        finally:
            for flight in flights:
                self._flights.leave(flight)
        embeddings = [flight.task.result() for flight in flights]
        return [_free(embedding) if free else embedding for embedding, free in zip(embeddings, shared, strict=True)]

    async def _compute_and_remember(self, item: EmbedInput, request_id: str) -> Embedding:
        embedding = await self._compute(item, request_id)
        self._cache.put((embedding.model["id"], *item.identity), embedding.vector, embedding.recipe)
        return embedding

    async def _compute(self, item: EmbedInput, request_id: str) -> Embedding:
        async with self._slots:
            try:
                return await self._send(item, request_id)
            except Unavailable:  # once more, and no more: if it is this item that kills the model, it must not go on
                return await self._send(item, request_id)

    async def _send(self, item: EmbedInput, request_id: str) -> Embedding:
        await self._readiness.wait()
        generation = self._readiness.generation
        try:
            embedding = await self._client.embed(item, self._seconds, request_id)
        except Unavailable:
            self._readiness.lost(generation)
            raise
        self._readiness.answered(embedding, generation)
        return embedding


def _raise_failure(flight: Flight[Embedding], item: EmbedInput) -> None:
    """Not by asking for the result: that would tie flight, error and frame into a cycle, and keep the item's image."""
    error = flight.task.exception() if flight.task.done() else None
    if isinstance(error, ApiError):
        raise error.at(item.param)
    if error is not None:
        raise RuntimeError("an item failed by our own fault") from error


def _free(embedding: Embedding) -> Embedding:
    """The same vector for somebody who did not start its computation."""
    return Embedding(embedding.vector, embedding.model, embedding.recipe)


def _of_one_model(embeddings: list[Embedding]) -> list[Embedding]:
    if len({embedding.model["id"] for embedding in embeddings}) > 1:
        raise DeadlinePassed(
            "timeout: the model was replaced while this request ran, and its vectors would not be comparable. "
            "Send the request again."
        )
    return embeddings
