"""Starting, watching and stopping the real processes; and what is said when it cannot be done."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from rich.console import Console

from serving import logs
from serving.settings import ROOT, ServeSettings, ServingError, checkpoint
from serving.stack import Stack, check_port, shared_memory
from serving.tritonserver import Tritonserver
from tests.conftest import CHECKPOINT, serve_settings


def test_settings_are_refused_by_name():
    with pytest.raises(ServingError, match="SERVE_PROT is not a setting"):
        ServeSettings.from_environment({"SERVE_PROT": "1"})


def test_a_bad_value_names_its_variable(monkeypatch):
    monkeypatch.setenv("SERVE_PORT", "none")
    with pytest.raises(ServingError, match="SERVE_PORT"):
        ServeSettings.from_environment()


def test_which_checkpoint():
    assert checkpoint({}) == str(CHECKPOINT)
    assert checkpoint({"EMBED_CHECKPOINT": "a"}) == "a"
    assert checkpoint({"EMBED_CHECKPOINT": "a", "CHECKPOINT": "b"}) == "b"


def test_a_taken_port_is_a_sentence_with_the_variable():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"port {port} cannot be used.*set SERVE_PORT"):
            check_port("127.0.0.1", port, "SERVE_PORT")


def test_a_missing_tritonserver_is_a_sentence():
    with pytest.raises(ServingError, match="SERVE_TRITONSERVER: there is no /nowhere/tritonserver"):
        Tritonserver.find(ServeSettings(tritonserver="/nowhere/tritonserver"))


def test_quiet_logs_keep_warnings_errors_and_the_model():
    assert logs.quiet('E1123 03:57:00.097690 7818 server.cc:241] "CudaDriverHelper has not been initialized."') is None
    assert logs.quiet('I1123 03:57:00.097690 7818 server.cc:305] "Waiting"') is None
    assert logs.quiet("| qwen3_vl_embed | 1 | READY |") is None
    assert logs.quiet('W1123 03:57:00.097690 7818 x.cc:1] "shared memory is small"') == "shared memory is small"
    assert logs.quiet("I1123 03:57:00.097690 7818 model.py:35] embedding with x") == "embedding with x"


def test_a_checkpoint_that_cannot_be_served_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    stack = Stack(serve_settings(), str(tmp_path), Console(file=io.StringIO()))
    try:
        with pytest.raises(ServingError, match=r"triton did not start: .* is a llama checkpoint; this server"):
            stack.start()
    finally:
        stack.stop()
    assert not stack.triton.alive


def embed(url: str, text: str) -> httpx.Response:
    return httpx.post(f"{url}/txt/embed", json={"input": text}, timeout=60)


@pytest.mark.stack
def test_what_dies_is_restarted_and_callers_wait():
    """kill -9 of the stub (which Triton would never notice), then of the adapter."""
    stack = Stack(serve_settings(), str(CHECKPOINT), Console(file=io.StringIO()))
    watcher = threading.Thread(target=stack.watch, args=(0.2,), daemon=True)
    try:
        stack.start()
        before = embed(stack.url, "red").json()
        watcher.start()
        first, regions = stack.triton, shared_memory(stack.triton.popen.pid)
        stack._stub().kill()
        assert embed(stack.url, "blue").status_code == 200  # waits for the restart
        assert stack.triton is not first
        assert not any(os.path.exists(region) for region in regions)
        stack.adapter.kill()
        wait_for(lambda: embed(stack.url, "red").json() == before)
    finally:
        stack.stopping.set()
        if watcher.is_alive():  # it may be starting something just now
            watcher.join(60)
        stack.stop()
    assert not stack.triton.alive
    assert not stack.adapter.alive


def wait_for(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "it did not come back"
        time.sleep(0.2)


@pytest.mark.stack
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_make_serve_stops_with_everything_it_started(sign):
    """Also when the signal comes again while it is stopping."""
    settings = serve_settings()
    environment = os.environ | {name: str(port) for name, port in settings.ports.items()}
    served = subprocess.Popen(
        [sys.executable, "-m", "serving"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    printed = []
    try:
        for line in served.stderr:  # up to the line that says it serves, or to its end
            printed.append(line)
            if "stop: Ctrl-C" in line:
                break
        assert embed(f"http://localhost:{settings.port}", "red").status_code == 200, printed
    finally:
        served.send_signal(sign)
        time.sleep(0.3)
        served.send_signal(sign)
        served.communicate(timeout=60)
    assert served.returncode == 0
    assert f"Serving {CHECKPOINT} at http://localhost:{settings.port}" in "".join(printed)
    for name, port in settings.ports.items():
        check_port("127.0.0.1", port, name)
