"""Who cannot get in where: another user on this machine, a caller of Triton's own ports, a process that needs no key.

On a real stack as somebody would set it up who wants the adapter, and nothing else, reached from outside.
"""

import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from threading import Event, Thread

import httpx
import psutil
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from qwen3_vl_embed.serving.reaper import SHARED_MEMORY
from qwen3_vl_embed.serving.stack import WATCHDOG
from tests.conftest import RunningStack, running, serve_settings
from tests.test_triton import MODEL, Client
from tests.waits import LIMIT_SECONDS, until

pytestmark = [pytest.mark.stack, pytest.mark.faults]
KEY, CALLERS_KEY = "kept-from-triton", "the-command-lines"
BEARER = {"authorization": f"Bearer {KEY}"}
OUTSIDE = "127.0.0.2"  # stands for the address that other machines reach
NOBODY = 65534
SECRET = "CONFIDENTIAL "


@pytest.fixture(scope="module")
def modes() -> Iterator[set[int]]:
    """What the modes of this process's regions ever were, looked at a thousand times a second."""
    seen: set[int] = set()
    over = Event()

    def look() -> None:
        while not over.wait(0.001):
            for region in SHARED_MEMORY.glob(f"qwen3_vl_embed_{os.getpid()}_*"):
                with suppress(FileNotFoundError):
                    seen.add(stat.S_IMODE(region.stat().st_mode))

    looking = Thread(target=look)
    looking.start()
    yield seen
    over.set()
    looking.join()


@pytest.fixture(scope="module")
def opened(modes: set[int]) -> Iterator[RunningStack]:
    """`SERVE_HOST` is set; so is the adapter's key, and the command line's."""
    keys = {"ADAPTER_API_KEY": KEY, "QWEN3_VL_EMBED_API_KEY": CALLERS_KEY}
    with running(serve_settings(host=OUTSIDE), **keys) as started:
        yield started


def embed(opened: RunningStack, text: str) -> httpx.Response:
    return httpx.post(f"{opened.adapter_url}/txt/embed", json={"input": text}, headers=BEARER, timeout=60)


def regions(opened: RunningStack) -> list[Path]:
    return list(SHARED_MEMORY.glob(f"{opened.stack.regions}*"))


@pytest.fixture
def asked(opened: RunningStack) -> Path:
    """The memory through which a text has just gone to the model, and where much of it still lies."""
    [region] = regions(opened)

    def lies_there() -> bool:  # unless a probe has taken its place meanwhile
        assert embed(opened, SECRET * 50 + token_hex(8)).status_code == 200  # one that no cache knows
        return SECRET.encode() in region.read_bytes()

    until(lies_there)
    return region


def test_the_shared_memory_is_for_its_owner_alone(asked, modes):
    """From its first moment: who has opened it once reads on, whatever its mode becomes."""
    assert stat.S_IMODE(asked.stat().st_mode) == 0o600
    assert modes == {0o600}


def test_it_is_so_however_triton_was_started(monkeypatch, tmp_path):
    """Where the watchdog's filter is not there, the model closes it before the first request."""
    watchdog = tmp_path / "watchdog.py"
    program = WATCHDOG.read_text()
    assert program.count("    keep_private()\n") == 1
    watchdog.write_text(program.replace("    keep_private()\n", ""))
    monkeypatch.setattr("qwen3_vl_embed.serving.stack.WATCHDOG", watchdog)
    with running() as started:
        [region] = regions(started)
        assert stat.S_IMODE(region.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_reads_no_text(asked):
    read = subprocess.run(["cat", asked], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True)
    assert read.returncode != 0
    assert b"Permission denied" in read.stderr
    assert read.stdout == b""


def test_memory_that_grew_is_as_private(opened, asked):
    """Four files of 19 MiB in one request are more than the 64 MiB that it starts with."""
    client = Client(tritonclient.grpc, opened.triton_grpc)
    before = asked.stat().st_size
    with pytest.raises(InferenceServerException, match="not an image"):
        client.infer(text=[b""] * 4, image=[bytes(19 * 2**20)] * 4, options=[b""] * 4, rows=4)
    client.client.close()
    assert asked.stat().st_size > before
    assert stat.S_IMODE(asked.stat().st_mode) == 0o600
    assert embed(opened, "served as before").status_code == 200


def test_what_opens_the_adapter_does_not_open_triton(opened):
    assert httpx.get(f"{opened.adapter_url}/info").status_code == 401
    assert httpx.get(f"{opened.adapter_url}/info", headers=BEARER).status_code == 200
    assert opened.adapter_url.startswith(f"http://{OUTSIDE}:")
    for address in (opened.triton_http, opened.triton_grpc, opened.triton_metrics):
        port = int(address.rpartition(":")[2])
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://{OUTSIDE}:{port}/v2/health/live")


def test_triton_can_be_opened_by_its_own_variables():
    """Elsewhere; and what a load tool wants of it, and no more than that. Models stay as they are."""
    settings = serve_settings(triton_host=OUTSIDE, triton_open_apis="model-repository")
    with running(settings) as started:
        assert httpx.post(f"{started.adapter_url}/txt/embed", json={"input": "red"}, timeout=60).status_code == 200
        triton = f"http://{OUTSIDE}:{settings.triton_http_port}/v2"
        assert httpx.get(f"{triton}/health/live").status_code == 200
        assert httpx.post(f"{triton}/repository/index").json()[0]["name"] == MODEL
        for action in ("load", "unload"):
            answer = httpx.post(f"{triton}/repository/models/{MODEL}/{action}", json={})
            assert "is not allowed" in answer.json()["error"]
        assert httpx.get(f"{triton}/logging").status_code == 403


SHARED = {"key": "own", "offset": 0, "byte_size": 64}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "systemsharedmemory/region/own/register", SHARED),
        ("GET", "systemsharedmemory/status", None),
        ("POST", "systemsharedmemory/unregister", None),
        ("POST", "cudasharedmemory/region/own/register", SHARED),
        ("GET", "cudasharedmemory/status", None),
        ("POST", "repository/index", {}),
        ("POST", f"repository/models/{MODEL}/load", {}),
        ("POST", f"repository/models/{MODEL}/unload", {}),
        ("GET", "logging", None),
        ("POST", "logging", {"log_verbose_level": 4}),
        ("GET", "trace/setting", None),
        ("POST", f"models/{MODEL}/trace/setting", {"trace_level": ["TENSORS"]}),
    ],
)
def test_tritons_other_apis_are_closed_over_http(opened, method, path, body):
    answer = httpx.request(method, f"http://{opened.triton_http}/v2/{path}", json=body)
    assert answer.status_code == 403, answer.text


@pytest.mark.parametrize(
    "call",
    [
        lambda client, region: client.register_system_shared_memory("own", region, 64),
        lambda client, region: client.get_system_shared_memory_status(),
        lambda client, region: client.unregister_cuda_shared_memory(),
        lambda client, region: client.get_model_repository_index(),
        lambda client, region: client.load_model(MODEL),
        lambda client, region: client.unload_model(MODEL),
        lambda client, region: client.update_log_settings({"log_verbose_level": 4}),
        lambda client, region: client.update_trace_settings(MODEL, {"trace_level": ["TENSORS"]}),
    ],
)
def test_tritons_other_apis_are_closed_over_grpc(opened, asked, call):
    with (
        tritonclient.grpc.InferenceServerClient(opened.triton_grpc) as client,
        pytest.raises(InferenceServerException, match="This protocol is restricted"),
    ):
        call(client, f"/{asked.name}")


def test_what_the_command_line_shows_opens_nothing(opened):
    """Triton's secret header can be read by any local user. It holds line breaks, so that no request can carry it."""
    [server] = [each for each in processes(opened) if each.name() == "tritonserver"]
    [flag] = [word for word in server.cmdline() if word.startswith("--http-restricted-api=")]
    name, value = flag.split(":")[1].split("=")
    assert value.strip()
    sent = f"{name}: {value}", f"{name.strip()}: {value.strip()}", f"{name}: {value}".replace("\n", "\r\n ")
    answers = [raw(opened.triton_http, f"GET /v2/logging HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n") for line in sent]
    assert all(answer == b"" or b" 403 " in answer for answer in answers)
    assert b" 200 " in raw(opened.triton_http, "GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")


def raw(address: str, request: str) -> bytes:
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT_SECONDS) as connection:
        connection.sendall(request.encode())
        return connection.recv(200)


def processes(opened: RunningStack) -> list[psutil.Process]:
    """The watchdog, Triton, the model's process."""
    watchdog = psutil.Process(opened.stack.triton.popen.pid)
    return [watchdog, *watchdog.children(recursive=True)]


def test_a_key_is_in_the_adapters_environment_alone(opened):
    reaper = psutil.Process(opened.stack._reaper._popen.pid)
    others = [*processes(opened), reaper]
    assert len(others) == 4
    for process in others:
        given = process.environ()
        assert not [name for name in given if name.startswith(("ADAPTER_", "QWEN3_VL_EMBED_"))], process.cmdline()
        assert not {KEY, CALLERS_KEY} & set(given.values())
    assert psutil.Process(opened.stack.adapter.popen.pid).environ()["ADAPTER_API_KEY"] == KEY
