"""Texts and images to vectors, through a running server: `Client`, and `AsyncClient` for asyncio.

How the two do a step of `protocol.Conversation` is all that they differ in.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, Generic, Self, TypeAlias, Unpack

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen3_vl_embed.batches import Progress, Stack, batches
from qwen3_vl_embed.contract import Endpoints
from qwen3_vl_embed.errors import ItemError
from qwen3_vl_embed.items import Embedded, Item
from qwen3_vl_embed.options import ImageOptions, TextOptions
from qwen3_vl_embed.protocol import Answer, Call, Conversation, Http, Request, Steps, Wait
from qwen3_vl_embed.settings import BATCH, RETRY_FOR_S, TIMEOUT_S

IN_FLIGHT = 2  # the server works on one batch while the next one is read, encoded and decoded

Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
"""An image: the path of its file, the file's bytes, a Pillow image, or an array, sRGB, uint8 (H, W[, 3 or 4])."""
Results: TypeAlias = list[Embedded | ItemError]


class _Base(Generic[Http]):
    _kind: type[Http]

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retry_for_s: float = RETRY_FOR_S,
        batch_size: int = BATCH,
        endpoints: Endpoints | None = None,
        notify: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._batch_size = batch_size
        self._server = Conversation(url, api_key, timeout_s, retry_for_s, endpoints, notify)
        self._http: Http = self._server.connected(self._kind)
        self._closed = Event()

    @property
    def url(self) -> str:
        """The server's, without a slash at its end."""
        return self._server.url

    def _requests(
        self, items: Iterable[Item], options: Mapping[str, Mapping[str, Any]], size: int | None = None
    ) -> Iterator[Steps[Results]]:
        """The steps of each request; `options` by kind. `size`: 1 sends a string, which every server takes."""
        size = size or self._batch_size
        for batch in batches(items, min(size, self._server.most_items)):
            yield self._server.batch(batch, options, as_list=size > 1)


class Client(_Base[httpx.Client]):
    """A connection to one server, which threads may share. All its vectors are of one model and one recipe.

    >>> with Client("http://localhost:8001") as client:
    ...     words = client.embed_text(["red", "blue"])  # float32 (2, D)
    ...     photo = client.embed_image("photo.jpg")  # float32 (D,)
    ...     words @ photo  # cosines, (2,): vectors have length 1

    Args:
        url: the server's; left out, the environment variable QWEN3_VL_EMBED_URL, or else http://localhost:8001.
        api_key: left out, the environment variable QWEN3_VL_EMBED_API_KEY.
        timeout_s: how long one answer may take, in seconds.
        retry_for_s: how long a server that is too busy, restarting or lost is asked again, in seconds from the first
            failure: when its `Retry-After` says, at most 5 s apart otherwise. One that never answered is not.
        batch_size: most items in a request; the server's own limit counts too.
        endpoints: of another server of the benchmark's schema. Whether its model stays the same is not seen then.
        notify: is told in a sentence, once for each time that the server is away.

    Raises:
        AdapterError: the URL, or a proxy that the environment names, cannot be used.
    """

    _kind = httpx.Client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends its connections; who waits for a server that is away gets the error."""
        self._closed.set()
        self._http.close()

    def embed_text(
        self, text: str | Iterable[str], *, progress: Progress | None = None, **options: Unpack[TextOptions]
    ) -> NDArray[np.float32]:
        """A string's vector, float32 (D,), or those of a list of N, float32 (N, D), in its order.

        Args:
            text: of any length; a list is sent in requests of `batch_size`, of which two are under way.
            progress: is called with how many of how many are done, after each request of a list.
            **options: fields of the request (`options.py`), such as `pooling="mean"`; left out, the server's.

        Raises:
            ItemError: one text of a list cannot be embedded; `index` says which.
            AdapterError: the server refused, failed, is not there, or serves another model than before.
        """
        if isinstance(text, str):
            return self._do(self._server.one(_text(text), options))
        return self._stack(map(_text, text), _count(text), {"text": options}, progress)

    def embed_image(
        self, image: Picture | Iterable[Picture], *, progress: Progress | None = None, **options: Unpack[ImageOptions]
    ) -> NDArray[np.float32]:
        """The same for images: one gets float32 (D,), a list of N gets float32 (N, D).

        Args:
            image: the path of a file, its bytes, a Pillow image, or an array, sRGB, uint8 (H, W), (H, W, 3) or
                (H, W, 4); or a list of them. Files are sent as they are, pixels without loss.

        Raises:
            ItemError, AdapterError: as `embed_text`. An image that cannot be read or sent is an ItemError too.
        """
        images = _several(image)
        if images is None:
            return self._do(self._server.one(_item(image), options))
        items = (_item(each, f"image {number}") for number, each in enumerate(images))
        return self._stack(items, _count(images), {"image": options}, progress)

    def embed_each(
        self,
        items: Iterable[Item],
        *,
        batch_size: int | None = None,
        in_flight: int = IN_FLIGHT,
        **options: Unpack[ImageOptions],
    ) -> Iterator[Results]:
        """Texts and images mixed, from any iterable, one request after the other: for more than memory holds.

        Args:
            items: `Item.text("red")`, `Item.image(Path("photo.jpg"))`.
            in_flight: requests that are under way at a time.
            **options: for all; `min_pixels` and `max_pixels` go with images alone.

        Yields:
            For each request, in order, what became of its items: `Embedded` (`item`, `vector` float32 (D,), `recipe`),
            or the ItemError of one that cannot be embedded.

        Raises:
            AdapterError: as `embed_text`.
        """
        return self._results(items, by_kind(options), batch_size, in_flight)

    def info(self) -> dict[str, Any]:
        """What GET /info says: `adapter` and `model`. Raises AdapterError."""
        return self._do(self._server.get("/info"))

    def model(self) -> dict[str, Any]:
        """The `model` of GET /info: id, checkpoint, dimension, recipe, … Waits for one that is starting.

        Raises AdapterError when there is none, or another than before.
        """
        return self._do(self._server.model())

    def openapi(self) -> dict[str, Any]:
        """What GET /openapi.json says. Raises AdapterError."""
        return self._do(self._server.get("/openapi.json"))

    def _stack(
        self,
        items: Iterable[Item],
        total: int | None,
        options: Mapping[str, Mapping[str, Any]],
        progress: Progress | None,
    ) -> NDArray[np.float32]:
        stack = Stack(total, progress)
        for results in self._results(items, options):
            stack.add(results)
        return stack.array()

    def _results(
        self,
        items: Iterable[Item],
        options: Mapping[str, Mapping[str, Any]],
        size: int | None = None,
        in_flight: int = IN_FLIGHT,
    ) -> Iterator[Results]:
        self._do(self._server.met())
        pool = ThreadPoolExecutor(in_flight)
        ahead: deque[Future[Results]] = deque()
        try:
            for steps in self._requests(items, options, size):
                ahead.append(pool.submit(self._do, steps))
                if len(ahead) > in_flight:  # one more, for the thread that is free first
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # what is kept must not wait for an answer

    def _do(self, steps: Steps[Answer]) -> Answer:
        try:
            step = next(steps)
            while True:
                try:
                    came = self._step(step)
                except Exception as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(came)
        except StopIteration as done:
            answer: Answer = done.value
            return answer

    def _step(self, step: Request | Wait | Call) -> Any:
        match step:
            case Request(method, path, content):
                return self._http.request(method, path, content=content)
            case Wait(seconds):
                return self._closed.wait(seconds)
            case Call(function):
                return function()


class AsyncClient(_Base[httpx.AsyncClient]):
    """`Client` for asyncio: the same arguments, methods, answers and errors. Its own loop only.

    >>> async with AsyncClient("http://localhost:8001") as client:
    ...     words = await client.embed_text(["red", "blue"])  # float32 (2, D)
    ...     async for results in client.embed_each(map(Item.text, open("names.txt"))):
    ...         ...
    """

    _kind = httpx.AsyncClient

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends its connections; who waits for a server that is away gets the error."""
        self._closed.set()
        await self._http.aclose()

    async def embed_text(
        self, text: str | Iterable[str], *, progress: Progress | None = None, **options: Unpack[TextOptions]
    ) -> NDArray[np.float32]:
        """As `Client.embed_text`."""
        if isinstance(text, str):
            return await self._do(self._server.one(_text(text), options))
        return await self._stack(map(_text, text), _count(text), {"text": options}, progress)

    async def embed_image(
        self, image: Picture | Iterable[Picture], *, progress: Progress | None = None, **options: Unpack[ImageOptions]
    ) -> NDArray[np.float32]:
        """As `Client.embed_image`. Files are read, and pixels written, beside the loop."""
        images = _several(image)
        if images is None:
            return await self._do(self._server.one(_item(image), options))
        items = (_item(each, f"image {number}") for number, each in enumerate(images))
        return await self._stack(items, _count(images), {"image": options}, progress)

    def embed_each(
        self,
        items: Iterable[Item],
        *,
        batch_size: int | None = None,
        in_flight: int = IN_FLIGHT,
        **options: Unpack[ImageOptions],
    ) -> AsyncIterator[Results]:
        """As `Client.embed_each`."""
        return self._results(items, by_kind(options), batch_size, in_flight)

    async def info(self) -> dict[str, Any]:
        """As `Client.info`."""
        return await self._do(self._server.get("/info"))

    async def model(self) -> dict[str, Any]:
        """As `Client.model`."""
        return await self._do(self._server.model())

    async def openapi(self) -> dict[str, Any]:
        """As `Client.openapi`."""
        return await self._do(self._server.get("/openapi.json"))

    async def _stack(
        self,
        items: Iterable[Item],
        total: int | None,
        options: Mapping[str, Mapping[str, Any]],
        progress: Progress | None,
    ) -> NDArray[np.float32]:
        stack = Stack(total, progress)
        async for results in self._results(items, options):
            stack.add(results)
        return stack.array()

    async def _results(
        self,
        items: Iterable[Item],
        options: Mapping[str, Mapping[str, Any]],
        size: int | None = None,
        in_flight: int = IN_FLIGHT,
    ) -> AsyncIterator[Results]:
        await self._do(self._server.met())
        ahead: deque[asyncio.Task[Results]] = deque()
        try:
            for steps in self._requests(items, options, size):
                if len(ahead) == in_flight:
                    yield await ahead.popleft()
                ahead.append(asyncio.create_task(self._do(steps)))
            while ahead:
                yield await ahead.popleft()
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _do(self, steps: Steps[Answer]) -> Answer:
        try:
            step = next(steps)
            while True:
                try:
                    came = await self._step(step)
                except Exception as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(came)
        except StopIteration as done:
            answer: Answer = done.value
            return answer

    async def _step(self, step: Request | Wait | Call) -> Any:
        match step:
            case Request(method, path, content):
                return await self._http.request(method, path, content=content)
            case Wait(seconds):
                await asyncio.sleep(seconds)
                return self._closed.is_set()
            case Call(function):
                return await asyncio.to_thread(function)


def by_kind(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of images, and of texts, which take fewer."""
    of_images = ImageOptions.__optional_keys__ - TextOptions.__optional_keys__
    return {"image": dict(options), "text": {name: value for name, value in options.items() if name not in of_images}}


def _count(given: Iterable[Any]) -> int | None:
    return len(given) if isinstance(given, Sized) else None


def _several(image: Picture | Iterable[Picture]) -> Iterable[Picture] | None:
    """None for one image: a path, a file's bytes or pixels. An array of four dimensions is several."""
    if isinstance(image, str | os.PathLike | bytes | Image.Image):
        return None
    if isinstance(image, np.ndarray):
        return list(image) if image.ndim == 4 else None
    return image


def _text(text: str) -> Item:
    """Raises TypeError for what is none: its letters would get a vector."""
    if not isinstance(text, str):
        raise TypeError(f"a text is a str, not {type(text).__name__}.")
    return Item.text(text)


def _item(image: object, name: str = "the image") -> Item:
    """Raises TypeError for what is no image at all."""
    if isinstance(image, str | os.PathLike):
        return Item.image(Path(image))
    if isinstance(image, bytes | Image.Image | np.ndarray):
        return Item("image", name, name, content=image)
    raise TypeError(f"{name}: an image is a path, bytes, a Pillow image or an array, not {type(image).__name__}.")
