"""An adapter that takes in nothing more: each request is turned away once, in order, and its connection goes on."""

import asyncio

import pytest

from tests.in_process import listening
from tests.waits import LIMIT_SECONDS
from tests.wire import JSON, connected, embedding, exchanged, raw


async def test_a_full_queue_refuses_a_body_before_it_is_there():
    async with listening(max_pending_items=256) as http, connected(http) as (reader, writer):
        http.app.state.admission.pending = 256
        writer.write(raw(JSON, b"Content-Length: 100000"))
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_SECONDS)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1" in answer.lower()


@pytest.fixture
async def full(impatient):
    """An adapter that takes in nothing more; idle connections are closed after most of a second."""
    async with listening(max_pending_items=256, max_body_bytes=4096) as http:
        http.app.state.admission.pending = 256
        yield http


RED = b'{"input": "red"}'


@pytest.mark.parametrize(
    ("request_", "statuses"),
    [
        (embedding(RED), [429]),
        (embedding(RED) * 3, [429, 429, 429]),
        (embedding(RED) + raw(first=b"GET /health/live HTTP/1.1"), [429, 200]),
        (raw(b"Content-Length: 0", first=b"HEAD /txt/embed HTTP/1.1"), [405]),
        (raw(b"Content-Length: 2", body=b"{}", first=b"GET /txt/embed HTTP/1.1"), [405]),
        (embedding(RED).replace(b"embed HTTP", b"embed?a HTTP"), [429]),
        (raw(JSON, b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n"), [429]),
        (raw(JSON, b"Content-Length: 5", b"Expect: 100-continue"), [429]),
    ],
)
async def test_a_full_adapter_answers_each_request_once_and_in_order(full, request_, statuses):
    answer = await exchanged(full, request_)
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == statuses
    assert b"HTTP/1.1 100" not in answer


async def test_who_was_turned_away_may_send_the_next_request_slowly(full):
    async with connected(full) as (reader, writer):
        writer.write(embedding(RED) * 2)
        for _ in range(2):
            await asyncio.wait_for(reader.readuntil(b'"overloaded"}}'), LIMIT_SECONDS)
        full.app.state.admission.pending = 0
        writer.write(embedding(RED)[:-5])
        await asyncio.sleep(1.2)  # longer than a connection may be idle
        writer.write(RED[-5:])
        assert b"HTTP/1.1 503 " in await asyncio.wait_for(reader.readuntil(b'"unavailable"}}'), LIMIT_SECONDS)


@pytest.mark.parametrize("path", [b"/txt/embed", b"/nowhere"])
async def test_a_body_that_comes_after_its_answer_leaves_no_connection_open(full, path):
    async with connected(full) as (reader, writer):
        writer.write(embedding(RED).replace(b"/txt/embed", path)[: -len(RED)])
        await reader.readuntil(b"\r\n\r\n")
        writer.write(RED)
        await asyncio.wait_for(reader.read(), LIMIT_SECONDS)  # to the end
