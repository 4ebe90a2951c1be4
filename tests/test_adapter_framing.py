"""Where a request ends and what belongs to its head: nothing that two servers could read in two ways is answered."""

import asyncio
import time

import pytest

from tests.in_process import listening
from tests.test_adapter_workers import start  # noqa: F401 (a fixture)
from tests.waits import LIMIT_SECONDS
from tests.wire import JSON, connected, exchanged, raw, told

LIVE = b"GET /health/live HTTP/1.1"
KEY = b"Authorization: Bearer s3cret-Key"
EMPTY = b"2\r\n{}\r\n0\r\n"  # a chunked body, but for its trailers and its end


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health/live HTTP/1.1\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: \r\n\r\n",
        raw(b"Host: y", first=LIVE),
        raw(b"Host: x", first=LIVE),
    ],
)
async def test_a_head_without_one_host_is_400_and_hung_up_on(head):
    async with listening() as http:
        assert "Host" in told(await exchanged(http, head), 400)["message"]


async def test_http_1_0_needs_no_host():
    async with listening() as http:
        assert b" 200 OK" in await exchanged(http, b"GET /health/live HTTP/1.0\r\n\r\n")


@pytest.mark.parametrize("codings", [(b"gzip, chunked",), (b"gzip", b"chunked"), (b"chunked", b"chunked")])
async def test_another_coding_than_chunked_is_400_and_hung_up_on(codings):
    async with listening() as http:
        lines = [b"Transfer-Encoding: " + coding for coding in codings]
        assert (
            "Transfer-Encoding" in told(await exchanged(http, raw(JSON, *lines, body=EMPTY + b"\r\n")), 400)["message"]
        )


@pytest.mark.parametrize("swapped", [False, True])
async def test_a_length_beside_chunks_counts_for_nothing_and_nothing_behind_it_is_run(swapped):
    """RFC 9112, 6.3: read as chunked, then closed. The server takes the length away, so that we cannot refuse it."""
    lines = [b"Content-Length: 5", b"Transfer-Encoding: chunked"]
    request = raw(JSON, *(reversed(lines) if swapped else lines), body=EMPTY + b"\r\n")
    async with listening() as http:
        answer = await exchanged(http, request + raw(first=LIVE))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'\\"input\\" is missing' in answer  # the two bytes of the one chunk, not five of something else
        assert answer.count(b"HTTP/1.1 ") == 1


async def test_trailers_are_no_headers():
    async with listening(api_key="s3cret-Key") as http:
        trailers = b"\r\n".join((KEY, b"x-request-id: from-a-trailer", b"Content-Type: text/plain", b"", b""))
        chunked = b"Transfer-Encoding: chunked"
        told(await exchanged(http, raw(JSON, chunked, body=EMPTY + trailers)), 401)
        answer = await exchanged(http, raw(JSON, KEY, chunked, b"Connection: close", body=EMPTY + trailers))
        assert answer.startswith(b"HTTP/1.1 400 ")  # an empty object, not 415
        assert b"from-a-trailer" not in answer


@pytest.mark.parametrize("size", [100, 1000, 15_000])  # KiB; the last one is over the limit
async def test_a_refusal_is_read_by_whoever_sends_all_of_his_body_first(size):
    async with listening(max_body_bytes=8 * 2**20, api_key="s3cret-Key") as http, connected(http) as (reader, writer):
        body = bytes(size * 1024)
        writer.write(raw(JSON, b"Content-Length: %d" % len(body), body=body))
        await writer.drain()
        await asyncio.sleep(0.1)
        answer = await asyncio.wait_for(reader.read(), LIMIT_SECONDS)  # to the end: a reset would be an exception
        assert told(answer, 401)["code"] == "unauthorized"


CONNECTIONS, REQUESTS = 20, 6000


def test_pipelined_requests_whose_answers_nobody_takes_hold_no_memory(start):  # noqa: F811
    running = start(ADAPTER_WORKERS="1", ADAPTER_LOG_LEVEL="error")
    (worker,) = running.workers()
    assert running.get("/openapi.json").status_code == 200
    before = worker.memory_info().rss
    attackers = [running.connect() for _ in range(CONNECTIONS)]
    for attacker in attackers:
        attacker.setblocking(False)
        pipelined = raw(first=b"GET /openapi.json HTTP/1.1") * REQUESTS
        for _ in range(20):
            try:
                pipelined = pipelined[attacker.send(pipelined) :]
            except BlockingIOError:
                time.sleep(0.01)
    time.sleep(1)
    grown = (worker.memory_info().rss - before) / 2**20
    for attacker in attackers:
        attacker.close()
    assert grown < 40, f"{grown:.0f} MiB for {CONNECTIONS} connections"
    assert running.get("/health/live").status_code == 200
