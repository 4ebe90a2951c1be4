"""Real sockets: what is slow, half, huge or not HTTP holds nothing up."""

import asyncio
import base64
import gc
import socket
import time

import orjson
import psutil
import pytest

from client.items import EmbedInput
from client.server import HEAD_BYTES, listen
from tests.in_process import line_to, listening, refused
from tests.waits import LIMIT_SECONDS, eventually
from tests.wire import JSON, connected, embedding, exchanged, raw, told


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # somebody speaks TLS
        raw(JSON, b"Content-Length: -1"),
        raw(JSON, b"Content-Length: many"),
        raw(JSON, b"Content-Length: 1.5"),
        raw(JSON, b"Content-Length: 2", b"Content-Length: 3", body=b"{}"),
        raw(JSON, b"Content-Length: +2", body=b"{}"),
        raw(JSON, b"Transfer-Encoding: chunked, identity", body=b"{}"),
        raw(b"X: a\rb"),
        raw(b"X: a\r\n b"),
        raw(b"X : a"),
        raw(b"no colon"),
        raw(first=b"GET /\xff HTTP/1.1"),
    ],
)
async def test_what_is_not_http_is_400_and_hung_up_on(request_):
    async with listening() as http:
        assert (await exchanged(http, request_)).startswith(b"HTTP/1.1 400 ")
        assert (await http.get("/health/live")).status_code == 200


@pytest.mark.parametrize(
    "chunk", [b"zz\r\n", b"+2\r\n{}\r\n", b"2\n{}\n", b"2\r\n{}XX", b"2;a\nb\r\n{}\r\n", b"f" * 17 + b"\r\n"]
)
async def test_a_malformed_chunk_is_400_and_hung_up_on(chunk):
    async with listening() as http:
        answer = await exchanged(http, raw(JSON, b"Transfer-Encoding: chunked", body=chunk + b"0\r\n\r\n"))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"chunks are malformed" in answer


async def test_too_large_a_head_is_431_whole_or_in_pieces():
    name, line = b"X-Big: ", b"a" * 20_000
    async with listening() as http:
        pieces = [b"GET /health/live HTTP/1.1\r\n", name, *[line] * 4]
        path = [b"GET /", *[line] * 4]
        many = [b"GET / HTTP/1.1\r\n", b"X: 1\r\n" * 101 + b"\r\n"]
        for request in (pieces, path, many):
            assert (await exchanged(http, *request)).startswith(b"HTTP/1.1 431 ")
        whole = raw(name + line * 7, b"Connection: close", first=b"GET /health/live HTTP/1.1")  # twice the bound
        assert b" 200 " not in await exchanged(http, whole)
        headers = {f"x-{index}": "a" * 700 for index in range(90)}  # 63,000 bytes
        assert (await http.get("/health/live", headers=headers)).status_code == 200


@pytest.mark.parametrize("both", [False, True])
def test_all_addresses_are_those_of_ipv4_too_whatever_the_machine_has(monkeypatch, both):
    if both and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: both)
    with listen("::", 0) as listening:
        for address in ["127.0.0.1", "::1"][: 1 + both]:
            socket.create_connection((address, listening.getsockname()[1]), LIMIT_SECONDS).close()


async def test_a_large_body_is_no_head():
    async with listening() as http:
        body = b'{"inputs": "' + b"a" * 4 * HEAD_BYTES + b'"}'
        refused(await http.post("/txt/embed", content=body, headers={"content-type": "application/json"}), 400)
        two = await exchanged(http, embedding(body) + embedding(body, b"Connection: close"))
        assert two.count(b"HTTP/1.1 400 ") == 2


@pytest.mark.parametrize(("start", "more"), [(b"", b""), (b"\r\n", b"\r\n"), (b"POST / HTTP/1.1\r\nHo", b"o")])
async def test_a_head_that_does_not_end_is_hung_up_on(impatient, start, more):
    async with listening() as http, connected(http) as (reader, writer):
        writer.write(start)
        for _ in range(4):  # one that trickles is none the better for it
            await asyncio.sleep(0.05)
            writer.write(more)
        assert await asyncio.wait_for(reader.read(), LIMIT_SECONDS) == b""


async def test_a_half_sent_body_is_408_and_held_nothing(impatient):
    async with listening(deadline_seconds=0.3, max_pending_items=256) as http:
        half = exchanged(http, embedding(b'{"input": "red"}')[:-3])
        answer, alive = await asyncio.gather(half, http.get("/health/live"))
        assert "timeout" in told(answer, 408)["message"]
        assert alive.status_code == 200
        assert http.app.state.admission.pending == 0
        assert http.app.state.intake.held == 0


NOWHERE = b"POST /nowhere HTTP/1.1"
ALIVE = raw(b"Connection: close", first=b"GET /health/live HTTP/1.1")


@pytest.mark.parametrize(
    "headers",
    [(b"Content-Length: 1000000",), (b"Transfer-Encoding: chunked",), (b"Content-Length: 9", b"Expect: 100-continue")],
)
async def test_a_body_that_is_refused_unread_ends_its_connection(impatient, headers):
    async with listening(max_body_bytes=4096) as http:
        assert (await exchanged(http, raw(*headers, first=NOWHERE))).startswith(b"HTTP/1.1 404 ")


async def test_the_rest_of_a_refused_body_is_thrown_away_and_its_connection_kept(impatient):
    async with listening(max_body_bytes=4096) as http:
        refused_early = raw(b"Content-Length: 4000", first=NOWHERE)
        answers = await exchanged(http, refused_early, b"a" * 4000, raw(first=b"GET /health/live HTTP/1.1"))
        assert answers.startswith(b"HTTP/1.1 404 ")
        assert answers.count(b"HTTP/1.1 200 ") == 1
        assert (await exchanged(http, refused_early, b"a")).startswith(b"HTTP/1.1 404 ")  # and not waited for for ever


async def test_trailers_without_end_are_hung_up_on(stack):
    async with listening(stack.triton_grpc) as http, connected(http) as (reader, writer):
        writer.write(raw(JSON, b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n"))
        with pytest.raises(ConnectionError):  # noqa: PT012
            for _ in range(1000):
                writer.write(b"a:b\r\n" * 1000)
                await writer.drain()
            await reader.read()


async def test_a_length_of_thousands_of_digits_is_400():
    async with listening() as http:
        zeros = raw(JSON, b"Connection: close", b"Content-Length: " + b"0" * 5000 + b"5", body=b"{}...")
        for request in (zeros, raw(JSON, b"Content-Length: " + b"9" * 5000)):
            assert (await exchanged(http, request)).startswith(b"HTTP/1.1 400 ")


async def test_answers_that_nobody_takes_are_hung_up_on(stack, impatient):
    names = embedding(orjson.dumps({"input": [f"untaken {index % 8}" for index in range(256)]}))
    async with listening(stack.triton_grpc) as http, connected(http) as (reader, writer):
        reader._transport.pause_reading()
        writer.write(names * 40)  # more answers than the sockets hold
        await eventually(lambda: open_connections(http))
        await eventually(lambda: not open_connections(http))


async def test_what_failed_keeps_no_image():
    async with listening() as http:
        image = base64.b64encode(bytes(3000)).decode()
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                refused(await http.post("/img/embed", json={"input": [image, image + "AAAA"]}), 503)
            kept = [each for each in gc.get_objects() if type(each) is EmbedInput and each.image == bytes(3000)]
            assert not kept
        finally:
            gc.enable()


async def test_bodies_are_bounded_together():
    async with listening(max_body_bytes=4096, max_pending_bytes=6000, max_pending_items=256) as http:
        async with connected(http) as (_, writer):
            writer.write(embedding(b"a" * 4096)[:-10])
            await eventually(lambda: http.app.state.intake.held > 4000)
            response = await http.post("/txt/embed", json={"input": "a" * 3000})
            assert "rate limit" in refused(response, 429)["message"]
            assert int(response.headers["retry-after"]) > 0
            assert (await http.get("/health/live")).status_code == 200
        await eventually(lambda: http.app.state.intake.held == 0)
        refused(await http.post("/txt/embed", json={"input": "a" * 3000}), 503)


async def test_one_connection_too_many_waits_until_another_is_closed():
    async with listening(max_connections=3) as http:
        assert (await http.get("/health/live")).status_code == 200  # and its connection stays
        async with connected(http) as (_, first), connected(http), connected(http) as (reader, writer):
            writer.write(ALIVE)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.readexactly(1), 0.3)
            assert (await http.get("/health/live")).status_code == 200
            first.transport.abort()
            assert (await asyncio.wait_for(reader.read(), LIMIT_SECONDS)).startswith(b"HTTP/1.1 200 ")


async def test_hundreds_of_idle_connections_do_no_harm():
    async with listening() as http:
        idle = [await asyncio.open_connection("127.0.0.1", http.port) for _ in range(500)]
        assert (await http.get("/health/live")).status_code == 200
        for _, writer in idle:
            writer.transport.abort()


async def test_a_reader_that_takes_nothing_is_hung_up_on_and_held_no_slot(stack, impatient):
    names = orjson.dumps({"input": [f"unread {index % 8}" for index in range(256)]})
    for last in (b"Connection: close", b"X: y"):
        async with listening(stack.triton_grpc) as http, connected(http) as (reader, writer):
            reader._transport.pause_reading()
            writer.write(embedding(names, last) * 8 if last == b"X: y" else embedding(names, last))
            await asyncio.sleep(0.2)
            assert (await http.post("/txt/embed", json={"input": "red"})).status_code == 200
            await eventually(lambda: http.app.state.admission.pending == 0)
            await eventually(lambda: open_connections(http) <= 1)  # that of the line before, or none


def open_connections(http) -> int:
    """At the server's end."""
    return sum(each.laddr.port == http.port and bool(each.raddr) for each in psutil.Process().net_connections("tcp"))


async def test_expect_continue_is_asked_for_only_when_the_body_is_wanted(stack):
    body = b'{"input": "red"}'
    async with listening(stack.triton_grpc) as http:
        answer = await exchanged(http, embedding(body, b"Expect: 100-continue", b"Connection: close"))
        assert answer.startswith(b"HTTP/1.1 100 ")
        assert b"HTTP/1.1 200 " in answer
        large = raw(JSON, b"Content-Length: 1000000000", b"Expect: 100-continue")
        assert told(await exchanged(http, large), 413)


async def test_pipelined_requests_are_answered_in_order(stack):
    bodies = [b'{"input": "one"}', b"{}", b'{"input": ["two"]}']
    async with listening(stack.triton_grpc) as http:
        *first, last = bodies
        answer = await exchanged(http, b"".join(map(embedding, first)) + embedding(last, b"Connection: close"))
        assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400", b"200"]


async def test_no_request_gets_the_refusal_of_the_one_behind_it(stack):
    async with line_to(stack.triton_grpc) as line, listening(line.url) as http:
        line.hold()
        answer = await exchanged(http, embedding(b'{"input": "held"}', b"x-timeout: 0.5") + b"nonsense\r\n\r\n")
        assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"504", b"400"]


async def test_http_1_0_and_an_upgrade_that_nobody_offers_are_answered_as_usual(stack):
    body = b'{"input": "red"}'
    async with listening(stack.triton_grpc) as http:
        old = embedding(body).replace(b"HTTP/1.1", b"HTTP/1.0")
        assert (await exchanged(http, old)).startswith(b"HTTP/1.0 200 ")
        upgrade = raw(b"Connection: Upgrade, close", b"Upgrade: h2c", first=b"GET /health/live HTTP/1.1")
        assert (await exchanged(http, upgrade)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("seconds", [0.2, 0.5])
async def test_x_timeout_is_a_504_at_that_time_and_the_work_is_cancelled(stack, seconds):
    async with line_to(stack.triton_grpc) as line, listening(line.url) as http:
        line.hold()
        started = time.monotonic()
        response = await http.post("/txt/embed", json={"input": ["a", "b"]}, headers={"x-timeout": str(seconds)})
        assert seconds - 0.05 < time.monotonic() - started
        assert f"longer than {seconds} s" in refused(response, 504)["message"]
        assert http.app.state.admission.pending == 0
        assert not http.app.state.dispatcher._flights._flights


async def test_x_timeout_is_seconds_and_never_more_than_the_servers(stack):
    async with line_to(stack.triton_grpc) as line, listening(line.url, deadline_seconds=0.3) as http:
        for value in ("0", "-1", "soon", "nan", ""):
            error = refused(await http.post("/txt/embed", json={"input": "red"}, headers={"x-timeout": value}), 400)
            assert error["param"] == "x-timeout"
        line.hold()
        for value in ("1e9", "inf"):
            response = await http.post("/txt/embed", json={"input": "a"}, headers={"x-timeout": value})
            assert "longer than 0.3 s" in refused(response, 504)["message"]


@pytest.mark.parametrize("path", [b"/txt/embed", b"/debug/render"])
async def test_a_client_that_hangs_up_is_noticed_and_its_items_cancelled(stack, path):
    body = b'{"text": "left"}' if b"render" in path else b'{"input": ["left", "behind"]}'
    async with line_to(stack.triton_grpc) as line, listening(line.url) as http:
        line.hold()
        async with connected(http) as (_, writer):
            writer.write(embedding(body).replace(b"/txt/embed", path))
            await eventually(lambda: http.app.state.admission.pending > 0)
        await eventually(lambda: http.app.state.admission.pending == 0)
        assert not http.app.state.dispatcher._flights._flights
