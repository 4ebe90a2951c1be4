"""The request body: read within its limit, and noticed when nobody waits for the answer any more.

Knows HTTP. Does not know what the JSON inside means.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from starlette.requests import ClientDisconnect, Request

from client.errors import InvalidInput, TooLarge, UnsupportedMediaType


async def read_body(request: Request, max_bytes: int) -> bytearray:
    """The body of a JSON request. A body over the limit is refused while it arrives, and by its declared length before.

    Raises:
        UnsupportedMediaType, TooLarge: by the headers or on the way.
        ClientDisconnect: the client left in the middle of it.
    """
    headers = request.headers
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("Send the body as JSON, with the header Content-Type: application/json.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Send the body uncompressed, without a Content-Encoding header.")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()  # not a list of chunks: a thousand chunks of one byte would take forty thousand
    async for chunk in request.stream():
        if len(body) + len(chunk) > max_bytes:
            raise _too_large(max_bytes)
        body += chunk
    return body


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The body is larger than {max_bytes} bytes: send fewer or smaller items in one request.")


def parse_object(body: bytes | bytearray) -> dict:
    """The JSON object in a body. Of a key that stands there twice the last one counts, as in most JSON parsers.

    orjson refuses what Python's own parser lets pass: NaN, Infinity, lone surrogates, a byte order mark, bad UTF-8, and
    more than 1024 levels.

    Raises:
        InvalidInput: not JSON, or not an object.
    """
    if not body:
        raise InvalidInput('The body is empty: send a JSON object with the field "input".', "input")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"The body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InvalidInput('The body must be a JSON object with the field "input".', "input")
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
