"""The HTTP client of the command line against servers that are busy, broken, foreign or absent.

The answers of a working adapter are tested through the commands (test_cli.py); these are the ones it cannot be made to
give on demand.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from qwen3_vl_embed.cli import adapter_client
from qwen3_vl_embed.cli.adapter_client import AdapterClient, AdapterError
from tests.in_process import listening

Answer = tuple[int, dict[str, str], bytes]
BUSY = (429, {"Retry-After": "1"}, b'{"error": {"message": "429: too busy.", "param": null}}')
GOOD: Answer = (200, {}, b'{"embedding": [0.6, 0.8]}')
LOST = 0  # the connection ends without an answer


@pytest.fixture
def serve() -> Iterator[Callable[..., AdapterClient]]:
    """Starts a server that gives these answers, one after the other."""
    servers: list[HTTPServer] = []
    clients = ExitStack()

    def start(*answers: Answer, **settings: Any) -> AdapterClient:
        remaining = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, body = remaining.pop(0)
                if status == LOST:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return clients.enter_context(AdapterClient(f"http://127.0.0.1:{servers[-1].server_port}/", **settings))

    with clients:
        yield start
    for server in servers:
        server.shutdown()
        server.server_close()


async def test_the_key_of_a_server_that_wants_one(monkeypatch):
    """The real adapter: without its key a sentence says where to put it, with it /info answers."""
    async with listening(api_key="s3cret-Key") as http:

        def info() -> dict[str, Any]:
            with AdapterClient(str(http.base_url)) as client:
                return client.info()

        with pytest.raises(AdapterError, match="put it into the environment variable QWEN3_VL_EMBED_API_KEY") as told:
            await asyncio.to_thread(info)
        assert told.value.status == 401
        monkeypatch.setenv("QWEN3_VL_EMBED_API_KEY", "s3cret-Key")
        assert "adapter" in await asyncio.to_thread(info)
        monkeypatch.setenv("QWEN3_VL_EMBED_API_KEY", "another")
        with pytest.raises(AdapterError, match="refuses the key in"):
            await asyncio.to_thread(info)


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that the client would have waited; its clock goes on by them."""
    waited: list[float] = []

    class Hurried(Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0)
            return False

    monkeypatch.setattr(adapter_client, "Event", Hurried)
    monkeypatch.setattr(adapter_client, "monotonic", lambda: 1000 + sum(waited))
    return waited


def test_a_busy_adapter_is_asked_again(serve, waits):
    with serve(BUSY, BUSY, BUSY, GOOD) as client:
        np.testing.assert_array_equal(client.embed_text("red"), np.float32([0.6, 0.8]))
    assert waits == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("status", [502, 503, 504, LOST])
def test_a_restart_is_outlasted(serve, waits, status):
    """With one word about it, however often it is asked; a gateway may answer in the adapter's place."""
    told: list[str] = []
    down: list[Answer] = [(status, {}, b"<html>")] * 8
    with serve(GOOD, *down, GOOD, notify=told.append) as client:
        client.embed_text("red")
        np.testing.assert_array_equal(client.embed_text("red"), np.float32([0.6, 0.8]))
    assert waits == [0.5, 1, 2, 4, 5, 5, 5, 5]
    assert len(told) == 1
    assert told[0].endswith("Asking again for up to 120 s.")


@pytest.mark.parametrize(("seconds", "status"), [(120, 429), (120, 503), (7, 504), (0, LOST)])
def test_an_adapter_that_stays_away_is_given_up(serve, waits, seconds, status):
    with serve(GOOD, *[(status, {}, b"")] * 40, retry_for_s=seconds) as client:
        client.embed_text("red")
        with pytest.raises(AdapterError) as caught:
            client.embed_text("red")
    assert caught.value.status == (status or None)
    assert sum(waits) == seconds


@pytest.mark.parametrize(("after", "seconds"), [("45", 45), (format_datetime(datetime.now(UTC)), 0.5), ("soon", 0.5)])
def test_retry_after_is_seconds_or_a_date(serve, waits, after, seconds):
    with serve((429, {"Retry-After": after}, b""), GOOD) as client:
        client.embed_text("red")
    assert waits == [seconds]


def test_another_recipe_in_the_middle_is_refused(serve):
    """Vectors of two recipes in one file would be plausible, and wrong."""
    answers = [(200, {"x-recipe": recipe}, GOOD[2]) for recipe in ("a", "a", "b")]
    with serve(*answers) as client:
        client.embed_text("red")
        client.embed_text("red")
        with pytest.raises(AdapterError, match="another recipe"):
            client.embed_text("red")


PROXIES = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense://x", "http://x:port"])
def test_this_machine_is_never_asked_through_a_proxy(serve, monkeypatch, proxy):
    for name in PROXIES[:4]:
        monkeypatch.setenv(name, proxy)
    with serve(GOOD) as client:
        assert client.embed_text("red").shape == (2,)


@pytest.mark.parametrize(
    ("name", "proxy", "sentence"),
    [
        ("HTTP_PROXY", "http://127.0.0.1:9", "through the environment's proxy; NO_PROXY=gpu-box.invalid"),
        ("ALL_PROXY", "socks5://127.0.0.1:9", r"SOCKS proxy, which needs a package.*NO_PROXY=gpu-box.invalid"),
        ("ALL_PROXY", "nonsense://x", "proxy that the environment names cannot be used"),
        ("ALL_PROXY", "http://127.0.0.1:port", "proxy that the environment names cannot be used"),
    ],
)
def test_a_proxy_that_does_not_work_is_a_sentence(monkeypatch, name, proxy, sentence):
    monkeypatch.setenv(name, proxy)
    with pytest.raises(AdapterError, match=sentence), AdapterClient("http://gpu-box.invalid:8001") as client:
        client.embed_text("red")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"<html>", "is it the adapter"),
        (b"[]", "is it the adapter"),
        (b'{"data": []}', "without a list of numbers"),
        (b'{"embedding": ["a"]}', "without a list of numbers"),
        (b'{"embedding": [[1, 0], [1]]}', "without a list of numbers"),
        (b'{"embedding": [[1, 0]]}', "not what was asked"),
        (b'{"embedding": [1, 0]}', "not what was asked"),
    ],
)
def test_an_answer_of_another_shape_is_no_vector(serve, body, sentence):
    with serve((200, {}, body)) as client, pytest.raises(AdapterError, match=sentence):
        client.embed_text(["red", "blue"])


def test_errors_keep_the_adapters_sentence_and_the_items_index(serve):
    body = b'{"error": {"message": "It is no image.", "type": "", "param": "input[7]", "code": ""}}'
    with serve((400, {}, body)) as client, pytest.raises(AdapterError, match=r"^It is no image\.$") as caught:
        client.embed_image([b"x"])
    assert (caught.value.status, caught.value.index) == (400, 7)


def test_an_error_of_something_else_says_so(serve):
    with serve((502, {}, b"Bad Gateway")) as client, pytest.raises(AdapterError, match="502 Bad Gateway"):
        client.embed_text("red")


def test_nothing_there():
    with AdapterClient("http://127.0.0.1:9") as client, pytest.raises(AdapterError, match="Nothing answers"):
        client.embed_text("red")


@pytest.mark.parametrize("url", ["localhost:8001", "ftp://localhost", "http://localhost:port"])
def test_a_url_that_is_none(url):
    with pytest.raises(AdapterError, match="Write it like http://"), AdapterClient(url) as client:
        client.embed_text("red")
