"""The request body: read within its limits, and noticed when nobody waits for the answer any more.

Does not know what the JSON inside means.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request

from client.errors import TOO_MANY, InvalidInput, Overloaded, TooLarge, UnsupportedMediaType

# Commas and brackets of a body, those in its texts too: 64 MB of prose have a million. Each may be a Python object of a
# hundred bytes, and while they are made nobody else is served.
MOST_PARTS = 2**21


class Intake:
    """How many bytes of all bodies together are held, while they arrive and as long as they are worked on."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.held = 0

    def take(self, count: int) -> None:
        """So many more.

        Raises:
            Overloaded: there is no room for them.
        """
        if self.held + count > self._max_bytes:
            raise Overloaded(TOO_MANY.format("bytes"))
        self.held += count

    def give_back(self, count: int) -> None:
        """They are held no more."""
        self.held -= count


async def read_body(request: Request, body: bytearray, max_bytes: int, intake: Intake, untyped: bool = False) -> None:
    """Read a JSON request's body. One over the limit is refused while it arrives, by its declared length even before.

    `untyped`: without a Content-Type it is taken for JSON too.

    Raises:
        UnsupportedMediaType, TooLarge, Overloaded: by the headers or on the way.
        InvalidInput: the client left in the middle of it, or its chunks are malformed: the server tells them not apart.
    """
    headers = dict(request.scope["headers"])
    default = b"application/json" if untyped else b""
    if headers.get(b"content-type", default).partition(b";")[0].strip().lower() != b"application/json":
        raise UnsupportedMediaType("Send the body as JSON, with the header Content-Type: application/json.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaType("Send the body uncompressed, without a Content-Encoding header.")
    length = headers.get(b"content-length", b"0").lstrip(b"0")  # digits, as the server has seen to
    if len(length) > 20 or int(length or b"0") > max_bytes:
        raise _too_large(max_bytes)
    try:
        async for chunk in request.stream():
            if len(body) + len(chunk) > max_bytes:
                raise _too_large(max_bytes)
            intake.take(len(chunk))
            body += chunk  # not a list of chunks: a thousand chunks of one byte would take forty thousand
    except ClientDisconnect:
        raise InvalidInput("The body broke off, or its chunks are malformed: send it whole.") from None


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The body is larger than {max_bytes} bytes: send fewer or smaller items in one request.")


def parse_object(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in a body. Of a key that stands there twice the last one counts, as in most JSON parsers.

    orjson refuses what Python's own parser lets pass: NaN, Infinity, lone surrogates, a byte order mark, bad UTF-8, and
    more than 1024 levels.

    Raises:
        InvalidInput: not JSON, or not an object.
        TooLarge: there would be millions of objects in it.
    """
    if len(body) > MOST_PARTS and sum(map(body.count, (b",", b"[", b"{"))) > MOST_PARTS:
        raise TooLarge(f"The body holds more than {MOST_PARTS} commas and brackets: send fewer items in one request.")
    if not body:
        raise InvalidInput("The body is empty: send a JSON object. GET /docs shows some.")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"The body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InvalidInput("The body must be a JSON object: GET /docs shows some.")
    return value


@asynccontextmanager
async def cancelled_on_disconnect(request: Request) -> AsyncIterator[None]:
    """Cancel what runs inside as soon as the client is gone, so that the model stops working for nobody.

    Raises:
        ClientDisconnect: the client left.
    """
    task = asyncio.current_task()
    assert task is not None

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not watcher.done():  # somebody else cancelled us: the deadline, or the server is stopping
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        watcher.cancel()
