"""What the adapter refuses by itself, with or without a model, and what the HTTP server below it makes of odd bytes."""

import socket

import httpx
import pytest

from tests.in_process import adapter, refused
from tests.waits import LIMIT_SECONDS


async def test_without_triton_it_is_live_but_not_ready():
    async with adapter() as http:
        assert (await http.get("/health/live")).json() == {"status": "live"}
        info = (await http.get("/info")).json()
        assert info["model"] is None
        assert info["adapter"]["limits"]["max_items"] == 256
        for response in (await http.get("/health"), await http.post("/txt/embed", json={"input": "red"})):
            refused(response, 503)
            assert int(response.headers["retry-after"]) > 0


async def test_what_the_caller_can_mend_is_said_without_a_model():
    async with adapter(max_items=2) as http:
        for body, param in (
            ({}, "input"),
            ({"input": []}, "input"),
            ({"input": ["a", "b", "c"]}, "input"),
            ({"input": [[101]]}, "input[0]"),
            ({"input": "red", "dimension": 8}, "dimension"),
        ):
            assert refused(await http.post("/txt/embed", json=body), 400)["param"] == param
        for value in ("file:///etc/passwd", "http://127.0.0.1/", "data:video/mp4;base64,AAAA", "AAA"):
            assert (
                refused(await http.post("/img/embed", json={"content": ["/9j/", value]}), 400)["param"] == "content[1]"
            )


async def test_what_belongs_into_the_body_is_not_taken_from_the_query_string():
    async with adapter() as http:
        for path, name in (("/txt/embed", "input"), ("/txt/embed", "dimensions"), ("/img/embed", "content")):
            error = refused(await http.post(path, params={name: "8"}, json={"input": "red"}), 400)
            assert error["param"] == name
        refused(await http.post("/txt/embed", params={"utm_source": "x"}, json={"input": "red"}), 503)  # nobody's field


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": ""},
        {"content-type": "multipart/form-data"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {"content-type": "application/json", "content-encoding": "br"},
    ],
)
async def test_other_media_types_and_compression_are_415(headers):
    async with adapter() as http:
        refused(await http.post("/txt/embed", content=b'{"input": "red"}', headers=headers), 415)


async def test_a_charset_and_identity_are_accepted():
    headers = {"content-type": "Application/JSON; charset=utf-8", "content-encoding": "identity"}
    async with adapter() as http:
        refused(await http.post("/txt/embed", content=b'{"input": "red"}', headers=headers), 503)


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_the_limit_is_413_and_is_not_read_to_its_end(declared):
    sent = 0

    async def chunks():
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"a" * 1000

    headers = {"content-type": "application/json"} | ({"content-length": "100000"} if declared else {})
    async with adapter(max_body_bytes=4096) as http:
        response = await http.post("/txt/embed", content=chunks(), headers=headers)
    refused(response, 413)
    assert response.headers["connection"] == "close"
    assert sent <= 10  # as much again as is allowed is thrown away behind the answer


async def test_unknown_paths_and_methods_have_the_same_body():
    async with adapter() as http:
        refused(await http.get("/embed"), 404)
        for method in ("GET", "PUT", "DELETE"):
            response = await http.request(method, "/txt/embed")
            refused(response, 405)
            assert response.headers["allow"] == "POST"
        assert (await http.head("/health/live")).status_code == 200


# What a well-behaved HTTP client cannot send


async def test_a_slash_at_the_end_leads_nowhere():
    """Behind a gateway that takes TLS away, a redirect would have the body sent once more without it."""
    async with adapter() as http:
        for path in ("/v1/embeddings/", "/txt/embed/", "/health/"):
            answer = await http.post(path, json={"input": "red"})
            refused(answer, 404)
            assert "location" not in answer.headers


def exchange(url: str, request: bytes) -> bytes:
    host, port = url.removeprefix("http://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=LIMIT_SECONDS) as connection:
        connection.sendall(request)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
    return answer


def raw(*headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((b"POST /txt/embed HTTP/1.1", b"Host: x", *headers, b"", body))


JSON = b"Content-Type: application/json"


@pytest.mark.parametrize("length", [b"-1", b"many", b"1.5"])
def test_an_impossible_content_length_is_400(stack, length):
    assert b" 400 " in exchange(stack.adapter_url, raw(JSON, b"Content-Length: " + length))[:20]


def test_a_declared_gigabyte_is_413_at_once(stack):
    host, port = stack.adapter_url.removeprefix("http://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=LIMIT_SECONDS) as connection:
        connection.sendall(raw(JSON, b"Content-Length: 1000000000", body=b"{"))
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer
    assert b'"too_large"' in answer


def test_expect_continue_pipelining_and_http_1_0_work(stack):
    body = b'{"input": "red"}'
    length = b"Content-Length: %d" % len(body)
    answer = exchange(stack.adapter_url, raw(JSON, length, b"Expect: 100-continue", b"Connection: close", body=body))
    assert answer.startswith(b"HTTP/1.1 100 ")
    assert b"HTTP/1.1 200 " in answer
    twice = raw(JSON, length, body=body) + raw(JSON, length, b"Connection: close", body=body)
    assert exchange(stack.adapter_url, twice).count(b"HTTP/1.1 200 ") == 2
    old = raw(JSON, length, body=body).replace(b"HTTP/1.1", b"HTTP/1.0")
    assert b" 200 " in exchange(stack.adapter_url, old)[:20]


def test_huge_and_many_headers_do_no_harm(stack):
    for headers in ((b"X-Big: " + b"a" * 100_000,), tuple(b"X-%d: a" % index for index in range(1000))):
        exchange(stack.adapter_url, raw(JSON, b"Content-Length: 2", b"Connection: close", *headers, body=b"{}"))
        assert httpx.get(stack.adapter_url + "/health").status_code == 200
