"""From the items of one request to their vectors: cache, admission, fan-out, shared computations, one repeat.

One item is one request to Triton, all at once: Triton makes the batches.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial

from client.errors import ApiError, DeadlinePassed, InvalidInput, Unavailable
from client.items import Embedding, EmbedInput
from client.triton.admission import MARGIN, Admission
from client.triton.cache import Flight, SingleFlight, VectorCache
from client.triton.pace import CHEAPER, DEADLINE_SECONDS, Pace
from client.triton.readiness import RETRY_SECONDS, Readiness
from client.triton.triton_client import TritonClient

# Of one item, to models that may have begun with it. Of several Tritons one whose model hangs goes on to refuse its
# share of items until its watchdog ends it, after 9 s or so: the last time is after 21 s.
SENDS, SENDS_TO_SEVERAL = 2, 4


class Pixels:
    """At most so many pixels of large items at Triton at once; an item that has more is there alone."""

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._turn = asyncio.Lock()  # one waits for room, the others behind it: none is overtaken for ever
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def taken(self, pixels: int, own_turn: asyncio.Lock) -> AsyncIterator[None]:
        """Waits until there is room for them; they are free again when the block ends.

        First come, first served, but of each request only one item, which holds `own_turn`: so requests take turns.
        """
        pixels = min(pixels, self._most)
        async with own_turn, self._turn:
            while self._free < pixels:
                self._freed.clear()
                await self._freed.wait()
            self._free -= pixels
        try:
            yield
        finally:
            self._free += pixels
            self._freed.set()


class Dispatcher:
    """Embeds the items of all requests of this process."""

    def __init__(
        self,
        client: TritonClient,
        readiness: Readiness,
        cache: VectorCache,
        admission: Admission,
        large: Admission,
        max_concurrency: int,
        max_pixels: int,
    ) -> None:
        self._client = client
        self._readiness = readiness
        self._cache = cache
        self._flights: SingleFlight[Embedding] = SingleFlight()
        self._slots = asyncio.Semaphore(max_concurrency)
        self._pixels = Pixels(max_pixels)
        self._pace = Pace()
        self._admission = admission  # of all items
        self._large = large  # of large images and long texts, by their pixels

    async def embed(self, items: list[EmbedInput], request_id: str, seconds: float) -> list[Embedding]:
        """One embedding for each item, in order and all of one model; nobody waits for longer than `seconds`.

        When one item fails, the others are cancelled.

        Raises:
            ApiError: of the item that failed; `param` names it.
        """
        for _ in range(2):  # once more where the model was replaced meanwhile
            embeddings = await self._embed(items, request_id, seconds)
            if len({embedding.model["id"] for embedding in embeddings}) == 1:
                return embeddings
        raise DeadlinePassed(
            "timeout: the model was replaced while this request ran, and its vectors would not be comparable. "
            "Send the request again."
        )

    async def _embed(self, items: list[EmbedInput], request_id: str, seconds: float) -> list[Embedding]:
        embeddings = [self._cached(item) for item in items]
        missing = [index for index, embedding in enumerate(embeddings) if embedding is None]
        if missing:
            asked = [items[index] for index in missing]
            with self._admitted(asked, seconds):
                computed = await self._embed_all(asked, request_id)
            for index, embedding in zip(missing, computed, strict=True):
                embeddings[index] = embedding
        return [embedding for embedding in embeddings if embedding is not None]

    async def render(self, item: EmbedInput, request_id: str, seconds: float) -> Embedding:
        """One item that asks how it is rendered: computed, never cached, since no vector is wanted."""
        with self._admitted([item], seconds):
            return await self._compute(item, request_id, asyncio.Lock())

    def most(self, images: bool, limit: int, seconds: float | None = None) -> int:
        """How many items one request may hold, `limit` at most, to be answered in time if the model is at its best."""
        seconds = seconds or self._readiness.deadline_seconds or DEADLINE_SECONDS
        return self._pace.most(self._readiness.model, images, MARGIN * seconds, limit)

    @property
    def after(self) -> int:
        """Seconds after which it is worth asking again, for who finds no room: one more item may be served by then."""
        takes = max(self._pace.lone(self._readiness.model, images) for images in (False, True))
        return max(1, min(60, round(takes)))

    @contextmanager
    def _admitted(self, items: list[EmbedInput], seconds: float) -> Iterator[None]:
        """Large items are overtaken by what is small: how long they take says nothing of the pace of items."""
        images, different = any(item.image for item in items), len({item.digest for item in items})
        cheaper = any(option in items[0].options for option in CHEAPER)
        if not cheaper:
            self._check_time(images, different, items[0].param.partition("[")[0])
        waiting = self._admission.pending + len(items)
        pixels = sum(item.large for item in items)
        large = self._large.admitted(pixels, seconds, after=self.after) if pixels else nullcontext()
        most = self.most(images, waiting, seconds)
        with self._admission.admitted(len(items), seconds, most, not pixels, self.after), large:
            yield

    def _check_time(self, images: bool, different: int, param: str) -> None:
        """What would miss its deadline again and again is refused at once, and not as something to be sent again."""
        model, given, kind = self._readiness.model, self._readiness.deadline_seconds, "image" if images else "text"
        if given and self._pace.hopeless(model, images, given):
            raise InvalidInput(
                f"One {kind} takes about {round(self._pace.lone(model, images), 4):g} s here, and "
                f"ADAPTER_DEADLINE_SECONDS is {given:g}: have it raised, or unset, so that it follows the model.",
                param,
            )
        if (most := self.most(images, different)) < different:
            raise InvalidInput(
                f"At most about {most} {kind}{'s' * (most > 1)} can be embedded here in "
                f"{given or DEADLINE_SECONDS:g} s, not {different}: send fewer at once, or have "
                "ADAPTER_DEADLINE_SECONDS raised.",
                param,
            )

    def _cached(self, item: EmbedInput) -> Embedding | None:
        model = self._readiness.model
        if model is None or (cached := self._cache.get((model["id"], item.digest))) is None:
            return None
        return cached._replace(model=model)

    async def _embed_all(self, items: list[EmbedInput], request_id: str) -> list[Embedding]:
        flights, shared, turn = [], [], asyncio.Lock()
        try:
            for item in items:
                compute = partial(self._compute_and_remember, item, request_id, turn)
                flights.append(self._flights.join(item.digest, compute))
                shared.append(flights[-1].waiters > 1)
            await asyncio.wait({flight.task for flight in flights}, return_when=asyncio.FIRST_EXCEPTION)
            for item, flight in zip(items, flights, strict=True):
                _raise_failure(flight, item)
        finally:
            for flight in flights:
                self._flights.leave(flight)
        embeddings = [flight.task.result() for flight in flights]
        return [_free(embedding) if free else embedding for embedding, free in zip(embeddings, shared, strict=True)]

    async def _compute_and_remember(self, item: EmbedInput, request_id: str, turn: asyncio.Lock) -> Embedding:
        embedding = await self._compute(item, request_id, turn)
        self._cache.put((embedding.model["id"], item.digest), _free(embedding))
        return embedding

    async def _compute(self, item: EmbedInput, request_id: str, turn: asyncio.Lock) -> Embedding:
        async with self._pixels.taken(item.large, turn) if item.large else nullcontext(), self._slots:
            begun, most = 0, SENDS_TO_SEVERAL if self._client.several else SENDS
            while True:  # as long as anybody waits for it
                await self._readiness.wait()
                try:
                    return await self._send(item, request_id)
                except Unavailable as error:
                    begun += error.begun
                    if begun == most:  # if it is this item that kills the model, it must not go on
                        raise
                await asyncio.sleep(4**begun * RETRY_SECONDS)

    async def _send(self, item: EmbedInput, request_id: str) -> Embedding:
        generation = self._readiness.generation
        try:
            # Each caller's own deadline ends his waiting; a computation that others joined since must outlive his.
            embedding = await self._client.embed(item, 2 * self._readiness.deadline([item]), request_id)
        except Unavailable:
            self._readiness.lost(generation)
            raise
        self._readiness.answered(embedding, generation)
        self._pace.learn(item, embedding)
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
    return Embedding(embedding.vector, embedding.model, embedding.recipe, tokens=embedding.tokens)
