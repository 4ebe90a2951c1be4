"""Starting, watching and stopping the real processes; and what is said when it cannot be done."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console

from qwen3_vl_embed.serving import interpreter, logs, tritonserver
from qwen3_vl_embed.serving.settings import ROOT, ServeSettings, ServingError, checkpoint
from qwen3_vl_embed.serving.stack import WATCHDOG, Stack, check_port
from qwen3_vl_embed.serving.tritonserver import Tritonserver
from tests.conftest import CHECKPOINT, serve_settings
from tests.in_process import png64
from tests.waits import LIMIT_SECONDS, items_in_flight, until

_spec = spec_from_file_location("watchdog", WATCHDOG)
assert _spec is not None
assert _spec.loader is not None
watchdog = module_from_spec(_spec)
_spec.loader.exec_module(watchdog)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("SERVE_PROT", "SERVE_PROT is not a setting"),
        ("serve_prot", "serve_prot is not a setting"),
        ("ADAPTER_PORT", "set SERVE_PORT, or unset it"),
        ("ADAPTER_TRITON_URL", "set SERVE_TRITON_GRPC_PORT, or unset it"),
    ],
)
def test_settings_are_refused_by_name(monkeypatch, name, sentence):
    monkeypatch.setenv(name, "1")
    with pytest.raises(ServingError, match=sentence):
        ServeSettings.from_environment()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVE_PORT", "none"),
        ("SERVE_STOP_SECONDS", "99999999999"),
        ("SERVE_TRITON_OPEN_APIS", "models"),
        ("SERVE_TRITON_OPEN_APIS", "trace,"),
    ],
)
def test_a_bad_value_names_its_variable(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ServingError, match=name):
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


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/nowhere/tritonserver", "there is no /nowhere/tritonserver"),
        ("/etc", "/etc is no program"),
        ("/etc/passwd", "/etc/passwd is no program"),
    ],
)
def test_a_tritonserver_that_cannot_be_run_is_a_sentence(path, why):
    with pytest.raises(ServingError, match=f"SERVE_TRITONSERVER: {why}"):
        Tritonserver.find(ServeSettings(tritonserver=path))


def test_a_wrong_setting_of_the_adapter_is_said_before_a_model_is_read():
    """Which may take minutes."""
    environment = os.environ | {"ADAPTER_WAIT_SECONDS": "10"}  # it was one, once
    environment |= {name: str(port) for name, port in serve_settings().ports.items()}
    command = [sys.executable, "-m", "qwen3_vl_embed.serving"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert done.returncode == 1
    assert "adapter did not start: Unknown setting ADAPTER_WAIT_SECONDS" in done.stderr
    assert "triton" not in done.stderr


def test_quiet_logs_keep_warnings_errors_and_the_model():
    assert logs.quiet('E1123 03:57:00.097690 7818 server.cc:241] "CudaDriverHelper has not been initialized."') is None
    assert logs.quiet('I1123 03:57:00.097690 7818 server.cc:305] "Waiting"') is None
    assert logs.quiet("| qwen3_vl_embed | 1 | READY |") is None
    assert logs.quiet('W1123 03:57:00.097690 7818 x.cc:1] "shared memory is small"') == "shared memory is small"
    assert logs.quiet("I1123 03:57:00.097690 7818 model.py:35] embedding with x") == "embedding with x"


def test_the_reason_is_never_an_empty_line():
    assert logs.load_failure(["Bad option.", "", " "]) == "Bad option."
    assert logs.load_failure([""]) == "it said nothing"


@pytest.mark.stack
@pytest.mark.faults
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
    return httpx.post(f"{url}/txt/embed", json={"input": text}, timeout=LIMIT_SECONDS)


def test_a_missing_libpython_is_a_sentence_before_anything_starts(monkeypatch):
    monkeypatch.setattr(interpreter, "libpython", lambda: None)
    with pytest.raises(ServingError, match=r"libpython3\.1\d\.so.*apt install libpython3\.1\d"):
        Stack(ServeSettings(), str(CHECKPOINT), Console(file=io.StringIO()))


def test_a_read_only_checkout_is_a_sentence(monkeypatch):
    monkeypatch.setattr(tritonserver, "CACHE", Path("/proc/read-only"))
    with pytest.raises(ServingError, match=r"/proc/read-only.* cannot be written"):
        Tritonserver._from_wheel()


def test_links_are_replaced_in_one_step(tmp_path):
    """However many start from one checkout at once, nobody finds a link missing."""
    (tmp_path / "old").touch()
    (tmp_path / "new").touch()
    path = tmp_path / "link"
    tritonserver.link(path, tmp_path / "old")

    def relink(turn: int) -> bool:
        tritonserver.link(path, tmp_path / ("old", "new")[turn % 2])
        return path.exists()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(relink, range(400)))
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "new", tmp_path / "old"]


def test_a_start_that_finds_its_links_writes_nothing(tmp_path):
    (tmp_path / "file").touch()
    tritonserver.link(tmp_path / "link", tmp_path / "file")
    written = (tmp_path / "link").lstat().st_mtime_ns
    tritonserver.link(tmp_path / "link", tmp_path / "file")
    assert (tmp_path / "link").lstat().st_mtime_ns == written


class Seen:
    """A Triton as its watchdog sees it: what it answers to a probe, and the CPU seconds it uses meanwhile."""

    def __init__(self) -> None:
        self.probe: bool | None = True
        self.whole: bool | None = True
        self.lone = self.longest = 0.0
        self.used, self.count, self.others, self.cpu = 0.0, 0, 0, {7: 0.0}
        self.dead = False

    def embeds(self, seconds: float, body: str = watchdog.LIGHT) -> bool | None:
        if body == watchdog.WHOLE:
            return self.whole
        self.cpu = {worker: before + self.used for worker, before in self.cpu.items()}
        self.count += self.probe is True
        return self.probe

    def answered(self) -> int:
        self.count += self.others
        return self.count

    def workers(self) -> dict[int, float]:
        return dict(self.cpu)

    def stillborn(self) -> bool:
        return self.dead


@pytest.fixture
def seen():
    return Seen()


@pytest.fixture
def up(seen):
    """Its watch, after a first answer."""
    watch = watchdog.Watch(seen)
    assert watch.look() is None
    return watch


def looks(watch, times: int) -> list[str | None]:
    return [watch.look() for _ in range(times)]


def test_loading_is_never_a_hang(seen):
    seen.probe = False
    assert looks(watchdog.Watch(seen), 100) == [None] * 100


def test_a_model_process_that_died_before_it_said_anything_ends_triton(seen, monkeypatch):
    """Triton 2.51 waits for it for ever. Any other death ends it by itself, and says more, so it is left some time."""
    seen.probe, seen.dead = False, True
    watch = watchdog.Watch(seen)
    assert looks(watch, 3) == [None] * 3
    later = watchdog.monotonic() + watchdog.STILLBORN_SECONDS + 1
    monkeypatch.setattr(watchdog, "monotonic", lambda: later)
    assert watch.look() == "a model process died as it started, and the log says why"
    seen.dead = False
    assert watch.look() is None


@pytest.mark.parametrize(("probe", "used"), [(None, 0.0), (False, 0.0), (False, 2.0)])
def test_a_silence_without_work_and_an_error_whatever_it_does_are_seen_at_the_second_look(seen, up, probe, used):
    seen.probe, seen.used = probe, used
    assert looks(up, 2) == [None, "2 times in a row no embedding came back"]
    assert 2 * (watchdog.PAUSE_SECONDS + watchdog.COUNT_SECONDS + watchdog.PROBE_SECONDS) < 10


def test_one_failed_look_is_forgiven(seen, up):
    for probe in (None, True) * 3:
        seen.probe = probe
        assert up.look() is None


def test_a_long_pass_is_no_hang_until_its_bound(seen, up, monkeypatch):
    seen.probe, seen.used = None, watchdog.PROBE_SECONDS
    assert looks(up, 50) == [None] * 50
    later = watchdog.monotonic() + watchdog.BUSY_SECONDS + 1
    monkeypatch.setattr(watchdog, "monotonic", lambda: later)
    assert "without an answer" in up.look()


def test_how_long_a_pass_may_be_follows_from_what_the_model_showed(seen, up, monkeypatch):
    """64 texts of 30 s each: no hang after five minutes, nor after half an hour."""
    seen.probe, seen.used, seen.longest = None, watchdog.PROBE_SECONDS, 64 * 30
    started = watchdog.monotonic()
    for seconds, ends in ((watchdog.BUSY_SECONDS + 1, False), (64 * 30, False), (11 * 64 * 30, True)):
        monkeypatch.setattr(watchdog, "monotonic", lambda seconds=seconds: started + seconds)
        assert bool(up.look()) == ends


def test_a_model_whose_layers_fail_is_seen_although_the_input_layer_answers(seen, monkeypatch):
    monkeypatch.setattr(watchdog, "PAUSE_SECONDS", 0.01)
    watch = watchdog.Watch(seen)
    assert watch.look() is None
    seen.whole = False
    deadline = time.monotonic() + LIMIT_SECONDS
    while (reason := watch.look()) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reason == "2 times in a row no embedding came back"


def test_while_others_are_answered_nothing_is_asked(seen, up):
    seen.others, seen.probe = 1, None
    assert looks(up, 10) == [None] * 10


def test_a_dead_model_process_is_seen_at_once(seen, up):
    seen.cpu = {}
    assert up.look() == "a model process died"


def test_where_the_watchdog_asks():
    assert watchdog.address(["tritonserver"]) == ("127.0.0.1", 8000)
    given = ["tritonserver", "--http-address=0.0.0.0", "--http-port=8010"]
    assert watchdog.address(given) == ("127.0.0.1", 8010)
    assert watchdog.address(["tritonserver", "--http-address=10.0.0.1"]) == ("10.0.0.1", 8000)


@pytest.mark.stack
@pytest.mark.faults
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_make_serve_answers_what_is_under_way_and_stops_with_everything_it_started(sign):
    """Also when the signal comes again while it is stopping."""
    bodies = [{"input": [png64(seed, index, 0, 1200) for index in range(64)]} for seed in range(4)]  # seconds of work
    settings = serve_settings()
    environment = os.environ | {name: str(port) for name, port in settings.ports.items()}
    environment["SERVE_STOP_SECONDS"] = str(LIMIT_SECONDS // 2)  # however busy this machine is
    served = subprocess.Popen(
        [sys.executable, "-m", "qwen3_vl_embed.serving"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    printed = []
    with ThreadPoolExecutor(4) as pool:
        try:
            for line in served.stderr:  # up to the line that says it serves, or to its end
                printed.append(line)
                if "stop: Ctrl-C" in line:
                    break
            url = f"http://localhost:{settings.port}"
            calls = [pool.submit(httpx.post, f"{url}/img/embed", json=body, timeout=LIMIT_SECONDS) for body in bodies]
            until(lambda: items_in_flight(url) == 4 * 64 or any(call.done() for call in calls))
            assert not all(call.done() for call in calls)
        finally:
            served.send_signal(sign)
            time.sleep(0.3)
            served.send_signal(sign)
            served.communicate(timeout=LIMIT_SECONDS)
        assert [call.result().status_code for call in calls] == [200] * 4
    assert served.returncode == 0
    assert f"Serving {CHECKPOINT} at http://localhost:{settings.port}" in "".join(printed)
    for name, port in settings.ports.items():
        check_port("127.0.0.1", port, name)


def heeds_signals(pid: int) -> bool:
    """From here on none is lost, and none interrupts an import."""
    blocked = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk"))
    return bool(int(blocked.split()[1], 16) & 1 << signal.SIGINT - 1)


@pytest.mark.faults
@pytest.mark.stack
@pytest.mark.parametrize(("when", "status"), [("imports", 130), ("loading", 130), ("serving", 0)])
def test_any_number_of_signals_at_any_time_is_one_word_and_leaves_nothing(when, status):
    settings = serve_settings()
    environment = os.environ | {name: str(port) for name, port in settings.ports.items()}
    command = [sys.executable, "-m", "qwen3_vl_embed.serving"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as served:
        until(lambda: heeds_signals(served.pid))
        printed = ""
        while when != "imports" and {"loading": "reading the weights", "serving": "stop: Ctrl-C"}[when] not in printed:
            printed += served.stderr.readline()
            assert served.poll() is None, printed
        children = psutil.Process(served.pid).children(recursive=True)
        for sign in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            served.send_signal(sign)
            time.sleep(0.002)
        printed += served.stderr.read()
        assert served.wait(LIMIT_SECONDS) == status, printed
    assert printed.count("stopping …\n") == 1
    assert "Traceback" not in printed
    _, alive = psutil.wait_procs(children, LIMIT_SECONDS)
    assert not alive
    assert not list(Path("/dev/shm").glob(f"qwen3_vl_embed_{served.pid}_*"))
