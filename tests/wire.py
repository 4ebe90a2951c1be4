"""Requests byte by byte over a real socket, for what an HTTP client would not send."""

import asyncio
from contextlib import asynccontextmanager, suppress

import orjson

from tests.waits import LIMIT_SECONDS

JSON = b"Content-Type: application/json"


def raw(*headers: bytes, body: bytes = b"", first: bytes = b"POST /txt/embed HTTP/1.1") -> bytes:
    return b"\r\n".join((first, b"Host: x", *headers, b"", body))


def embedding(body: bytes, *headers: bytes) -> bytes:
    return raw(JSON, b"Content-Length: %d" % len(body), *headers, body=body)


@asynccontextmanager
async def connected(http):
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def exchanged(http, *pieces: bytes) -> bytes:
    """What is answered until the other side hangs up."""
    answer = b""
    with suppress(ConnectionError):
        async with connected(http) as (reader, writer), asyncio.timeout(LIMIT_SECONDS):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.01)
            while part := await reader.read(65536):
                answer += part
    return answer


def told(answer: bytes, status: int) -> dict:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close" in head.lower()
    assert b"application/json" in head
    return orjson.loads(body)["error"]
