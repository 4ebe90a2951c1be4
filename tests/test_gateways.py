"""Smuggling, through real gateways and without one: a request's body never runs, and everybody gets his own answer."""

import json
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from lab.ports import free_ports
from tests.gateways import KINDS, gateway
from tests.waits import LIMIT_SECONDS
from tests.wire import JSON, embedding, raw

pytestmark = pytest.mark.gateways
NAMES = ["red", "green", "blue", "teal", "dusty rose", "black"]


def unfinished(_: str) -> bytes:
    """A head that takes in the next request's first line as the value of a header."""
    return b"GET /docs HTTP/1.1\r\nHost: x\r\nX-A: "


def slow(mark: str) -> bytes:
    """A request whose answer comes late, and never from the cache."""
    return embedding(json.dumps({"input": f"the attacker's {mark} " + "word " * 3000}).encode())


@pytest.fixture(scope="module")
def expected(stack) -> dict[str, list[float]]:
    return {name: embed(stack.adapter_url, name) for name in NAMES}


def embed(url: str, name: str) -> list[float]:
    response = httpx.post(f"{url}/txt/embed", json={"input": name}, timeout=LIMIT_SECONDS)
    assert response.status_code == 200, (response.status_code, response.text)
    return response.json()["embedding"]


@pytest.fixture(scope="module", params=["no gateway", *KINDS])
def url(request, stack, tmp_path_factory):
    if request.param == "no gateway":
        yield stack.adapter_url
        return
    adapter = stack.adapter_url.removeprefix("http://").replace("localhost", "127.0.0.1")
    with gateway(request.param, adapter, free_ports(1)[0], tmp_path_factory.mktemp("gateway")) as address:
        yield address


def send(url: str, *segments: bytes, quiet: float = 0.3) -> bytes:
    """What is answered to these bytes, each sent by itself, until there was nothing for so many seconds, or an end."""
    host, port = url.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=LIMIT_SECONDS) as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for segment in segments:
                caller.sendall(segment)
                time.sleep(0.05)
            while part := caller.recv(65536):
                answer += part
                caller.settimeout(quiet)
        except (TimeoutError, ConnectionError):
            pass
    return answer


def offering(body: bytes, *headers: bytes, path: bytes = b"/health/live") -> tuple[bytes, bytes]:
    """A request that offers an upgrade: its head, and its body."""
    offer = (b"Connection: Upgrade", b"Upgrade: foo", b"Content-Length: %d" % len(body))
    return raw(*offer, *headers, first=b"GET %b HTTP/1.1" % path), body


@pytest.mark.parametrize("pad", [0, 40_000])
@pytest.mark.parametrize("smuggled", [unfinished, slow])
def test_nobody_gets_anothers_answer(url, expected, smuggled, pad):
    for name in NAMES[: len(NAMES) if pad else 2]:
        send(url, *offering(b"\r\n" * (pad // 2) + smuggled(f"{url} {name}")))
        assert embed(url, name) == pytest.approx(expected[name], abs=1e-6)


def test_the_body_of_a_request_that_offers_an_upgrade_is_a_body(url):
    head, body = offering(raw(first=b"GET /openapi.json HTTP/1.1"))
    for segments in ([head + body], [head, body], [head, body[:20], body[20:]]):
        answer = send(url, *segments)
        assert answer.count(b"HTTP/1.1 200 ") == 1
        assert b'"live"' in answer


H2C = (
    b"Connection: Upgrade, HTTP2-Settings",
    b"Upgrade: h2c",
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
)
RED = b'{"input": "red"}'
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(RED), RED)


@pytest.mark.parametrize(
    "segments",
    [
        [raw(JSON, *H2C, b"Content-Length: %d" % len(RED), body=RED)],
        [raw(JSON, *H2C, b"Content-Length: %d" % len(RED)), RED],
        [raw(JSON, *H2C, b"Content-Length: %d" % len(RED)), RED[:5], RED[5:]],
        [raw(JSON, *H2C, b"Transfer-Encoding: chunked", body=CHUNKED)],
        [raw(JSON, *H2C, b"Transfer-Encoding: chunked"), CHUNKED[:5], CHUNKED[5:]],
    ],
    ids=["length", "length, later", "length, in pieces", "chunked", "chunked, in pieces"],
)
def test_an_offer_of_http_2_is_not_taken_and_the_request_answered(url, expected, segments):
    answer = send(url, *segments)
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["embedding"] == pytest.approx(expected["red"], abs=1e-6)


def test_pipelined_requests_behind_an_offer_are_each_answered_in_order(url):
    head, _ = offering(b"")
    behind = raw(first=b"GET /nowhere HTTP/1.1") + raw(b"Connection: close", first=b"GET /docs HTTP/1.1")
    answer = send(url, head + behind, quiet=LIMIT_SECONDS)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200"]


def test_curl_offers_http_2_and_gets_its_vector(url, expected):
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    command = ["curl", "-sS", "--http2", "-H", "Content-Type: application/json", "-d", RED.decode(), f"{url}/txt/embed"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=LIMIT_SECONDS)
    assert json.loads(done.stdout)["embedding"] == pytest.approx(expected["red"], abs=1e-6)


JAVA = """
import java.net.URI;
import java.net.http.*;

class Ask {
    public static void main(String[] arguments) throws Exception {
        var body = HttpRequest.BodyPublishers.ofString("{\\"input\\": \\"red\\"}");
        var request = HttpRequest.newBuilder(URI.create(arguments[0] + "/txt/embed"))
            .header("Content-Type", "application/json").POST(body).build();
        System.out.print(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
"""


def test_javas_client_as_it_is_gets_its_vector(url, expected, tmp_path):
    if not shutil.which("java"):
        pytest.skip("needs java: apt install openjdk-17-jdk-headless")
    program = tmp_path / "Ask.java"
    program.write_text(JAVA)
    done = subprocess.run(["java", program, url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["embedding"] == pytest.approx(expected["red"], abs=1e-6)


def test_many_callers_on_few_connections_get_their_own(url, expected):
    with ThreadPoolExecutor(8) as pool:
        for name, vector in zip(NAMES * 8, pool.map(lambda each: embed(url, each), NAMES * 8), strict=True):
            assert vector == pytest.approx(expected[name], abs=1e-6)
