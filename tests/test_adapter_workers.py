"""Several processes on one port, as real processes: all answer, the killed one comes back, all are gone at the end."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import psutil
import pytest

from client.server import listen
from client.settings import Settings, SettingsError
from lab.ports import free_ports
from qwen3_vl_embed.serving.settings import ROOT
from tests.in_process import DEAD
from tests.waits import LIMIT_SECONDS, until
from tests.wire import embedding

pytestmark = pytest.mark.faults
COUNT = 3


class Running:
    """`python -m client` with several workers."""

    def __init__(self, triton_url: str = DEAD, **variables: str) -> None:
        self.port = int(variables.setdefault("ADAPTER_PORT", str(free_ports(1)[0])))
        settings = {"ADAPTER_WORKERS": str(COUNT), "ADAPTER_TRITON_URL": triton_url, "PYTHONPATH": str(ROOT)}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "client"],
            cwd=ROOT,
            env=os.environ | settings | variables,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.seen: set[int] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.popen.pid).children()

    def get(self, path: str) -> httpx.Response:
        """On a connection of its own, so that any worker may be the one."""
        return httpx.get(self.url + path, timeout=LIMIT_SECONDS)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_SECONDS)

    def end(self) -> str:
        """Whatever is left of it is killed; what it said."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        return self.popen.communicate(timeout=LIMIT_SECONDS)[1]


@pytest.fixture
def start():
    started: list[Running] = []

    def start(*arguments, **variables) -> Running:
        started.append(Running(*arguments, **variables))
        until(lambda: started[-1].get("/health/live").status_code == 200)
        return started[-1]

    yield start
    for running in started:
        running.end()


EXPECT = b"Expect: 100-continue"


def refuses(running: Running) -> bool:
    """New connections."""
    try:
        running.connect().close()
    except ConnectionError:  # a reset: it stopped listening just then
        return True
    return False


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=LIMIT_SECONDS)[1]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_them_all_and_frees_the_port(start, sign):
    running = start()
    until(lambda: len(running.workers()) == COUNT)
    workers = running.workers()
    running.popen.send_signal(sign)
    assert running.popen.wait(LIMIT_SECONDS) == 0
    assert gone(workers)
    with socket.create_server(("127.0.0.1", running.port)):
        pass
    assert "Traceback" not in running.end()


@pytest.mark.parametrize("stop", ["ctrl-c", "sigterm"])
def test_all_of_them_stop_at_once_also_those_that_are_still_starting(start, stop):
    for _ in range(4):  # the first one answers: the others may be anywhere in their start
        running = start()
        if stop == "ctrl-c":
            os.killpg(running.popen.pid, signal.SIGINT)
        else:
            running.popen.terminate()
        assert running.popen.wait(LIMIT_SECONDS) == 0
        assert "Traceback" not in running.end()


@pytest.mark.parametrize("count", ["1", "3"])
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_ended_from_outside_is_replaced_and_no_caller_is_refused(start, sign, count):
    running = start(ADAPTER_WORKERS=count)
    until(lambda: len(running.workers()) == int(count))
    before = running.workers()
    before[0].send_signal(sign)
    for _ in range(30):
        assert running.get("/health/live").status_code == 200
    until(lambda: before[0] not in running.workers())
    until(lambda: len(running.workers()) == len(before))
    assert len({*running.workers()} - {*before}) == 1


def test_workers_that_keep_dying_end_the_whole(start):
    """Its watcher starts it again, with pauses that grow; we do not, without any."""
    running = start()
    while running.popen.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for worker in running.workers():
                worker.kill()
        time.sleep(0.01)
    assert running.popen.returncode == 1
    assert "crash loop" in running.end()


@pytest.mark.parametrize("count", ["1", "3"])
def test_no_worker_outlives_its_parent(start, count):
    running = start(ADAPTER_WORKERS=count)
    until(lambda: len(running.workers()) == int(count))
    workers = running.workers()
    running.popen.kill()
    assert gone(workers)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ADAPTER_WORKERS": "0"}, "ADAPTER_WORKERS: "),
        ({"ADAPTER_MAX_PENDING_BYTES": "100000000"}, "ADAPTER_MAX_PENDING_BYTES must be at least .*201326592"),
        ({"ADAPTER_API_KEY": "two words"}, "ADAPTER_API_KEY: (?!.*two words)"),
        (
            {"ADAPTER_WORKERS": "8", "ADAPTER_MAX_PENDING_ITEMS": "1024"},
            "ADAPTER_MAX_PENDING_ITEMS must be at least .*2048",
        ),
        ({"ADAPTER_WORKERS": "4", "ADAPTER_MAX_CONCURRENCY": "3"}, "ADAPTER_MAX_CONCURRENCY .*must be at least .*4"),
    ],
)
def test_wrong_settings_end_it_before_there_is_a_worker(variables, words):
    refused = Running(**variables)
    try:
        assert refused.popen.wait(LIMIT_SECONDS) == 1
    finally:
        said = refused.end()
    assert re.fullmatch(f"{words}.*\n", said), said  # one line, and no traceback


def test_a_taken_port_is_a_sentence_also_when_the_other_would_share_it(start):
    for taken in (socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0), reuse_port=True)):
        with taken, pytest.raises(SettingsError, match=f"port {taken.getsockname()[1]} cannot be listened on"):
            listen("127.0.0.1", taken.getsockname()[1])
    running = start()
    second = Running(ADAPTER_PORT=str(running.port))
    assert second.popen.wait(LIMIT_SECONDS) == 1
    assert "ADAPTER_PORT" in second.end()


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_the_shares_of_the_workers_never_exceed_the_total(workers):
    settings = Settings(workers=workers)
    for total in (settings.max_concurrency, settings.max_pending_items, settings.cache_bytes, 1023):
        assert 0 <= total - workers * settings.share(total) < workers


def test_each_worker_embeds_within_its_share(start, stack):
    running = start(stack.triton_grpc, ADAPTER_CACHE_BYTES="3000000")
    answers, caches = [], set()
    for _ in range(40):
        answers.append(httpx.post(f"{running.url}/txt/embed", json={"input": "shared"}, timeout=60))
        about = running.get("/info").json()
        caches.add(about["cache"]["max_bytes"])
        assert about["adapter"]["workers"] == COUNT
        assert about["adapter"]["limits"]["max_pending_items"] == Settings().max_pending_items
    assert {answer.status_code for answer in answers} == {200}
    vectors = np.array([answer.json()["embedding"] for answer in answers])
    assert (vectors @ vectors[0]).min() >= 0.99999  # a recorded pass and an ordinary one may round differently
    computed = sum(answer.headers["x-cache-hits"] == "0" for answer in answers)
    assert 1 <= computed <= COUNT  # once in each worker that was asked; who takes a connection is the kernel's choice
    assert caches == {1_000_000}


def test_requests_in_flight_are_answered_when_it_is_told_to_stop(start, stack):
    running = start(stack.triton_grpc)
    with socket.create_connection(("127.0.0.1", running.port), timeout=LIMIT_SECONDS) as caller:
        body = b'{"input": "the last one"}'
        caller.sendall(embedding(body, EXPECT)[: -len(body)])
        assert caller.recv(65536).startswith(b"HTTP/1.1 100 ")  # its body is waited for
        caller.sendall(body[:-1])
        running.popen.terminate()
        until(lambda: refuses(running))
        caller.sendall(body[-1:])
        assert caller.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert running.popen.wait(LIMIT_SECONDS) == 0


def test_a_stopping_adapter_refuses_new_connections_and_waits_for_no_idle_ones(start):
    running = start()
    with (
        socket.create_connection(("127.0.0.1", running.port)),  # that never says anything
        httpx.Client(base_url=running.url) as idle,
        socket.create_connection(("127.0.0.1", running.port)) as busy,
    ):
        assert idle.get("/health/live").status_code == 200
        busy.sendall(embedding(b"{}", EXPECT)[:-2])
        assert busy.recv(65536).startswith(b"HTTP/1.1 100 ")
        running.popen.terminate()
        until(lambda: refuses(running))
        busy.sendall(b"{}")
        assert busy.recv(65536).startswith(b"HTTP/1.1 400 ")
        assert running.popen.wait(LIMIT_SECONDS) == 0


def test_it_listens_on_ipv6(start):
    running = Running(ADAPTER_HOST="::1")
    try:
        until(lambda: httpx.get(f"http://[::1]:{running.port}/health/live").status_code == 200)
    finally:
        running.end()


BORN_SLOWLY = """
import os, time
os.register_at_fork(after_in_child=lambda: time.sleep(1))
from client import server
from client.settings import Settings
server.serve(Settings.from_environment())
"""


def test_a_worker_that_has_not_run_yet_when_it_is_told_to_stop_stops():
    """As on a busy machine: it is forked, and its first instruction comes after the signal."""
    variables = {"ADAPTER_PORT": str(free_ports(1)[0]), "ADAPTER_TRITON_URL": DEAD, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", BORN_SLOWLY],
        env=os.environ | variables | {"ADAPTER_DEADLINE_SECONDS": "5"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until(lambda: psutil.Process(process.pid).children())
        process.terminate()
        assert process.wait(LIMIT_SECONDS) == 0
        assert "refused to gracefully stop" not in process.stderr.read()


HANGING = """
import time
from client import app, server
from client.settings import Settings

async def hang(_):
    time.sleep(30)

app.live, server.HANG_SECONDS = hang, 2.5
server.serve(Settings.from_environment())
"""


def test_a_process_whose_event_loop_hangs_ends_says_where_and_is_replaced():
    port = free_ports(1)[0]
    environment = os.environ | {"ADAPTER_PORT": str(port), "ADAPTER_TRITON_URL": DEAD, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HANGING], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            until(lambda: httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 503)
            time.sleep(3)  # longer than it may hang, and it does not
            with pytest.raises(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/health/live", timeout=LIMIT_SECONDS)
            assert httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=LIMIT_SECONDS).status_code == 503
            process.terminate()
            assert process.wait(LIMIT_SECONDS) == 0
        finally:
            process.kill()
        assert "in hang" in process.communicate()[1]
