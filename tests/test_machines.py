"""The machines people have: paths, names, locales, proxies, ports that others chose. Each serves, or says why not."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from client.server import listen
from client.settings import Settings, SettingsError
from lab.ports import free_ports, serve_settings
from qwen3_vl_embed import Client
from qwen3_vl_embed.serving import interpreter
from qwen3_vl_embed.serving.settings import ROOT, ServeSettings, ServingError
from qwen3_vl_embed.serving.stack import check_ports
from qwen3_vl_embed.serving.tritonserver import PLAIN
from tests.conftest import CHECKPOINT
from tests.in_process import adapter
from tests.waits import LIMIT_SECONDS

NAMES = ("port", "triton_http_port", "triton_grpc_port", "triton_metrics_port")
PROMPT = "Größe → {content} 赤"
NOWHERE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy"), "http://127.0.0.1:1")


def ports(settings: ServeSettings) -> list[int]:
    return [getattr(settings, name) for name in NAMES]


def lone_port() -> int:
    """One of which the three that follow from it are free too."""
    while True:
        [port] = free_ports(1)
        try:
            check_ports(ServeSettings(port=port))
        except ServingError:
            continue
        return port


def test_the_other_ports_follow_from_the_adapters():
    assert ports(ServeSettings()) == [8001, 8010, 8011, 8012]
    assert ports(ServeSettings(port=8002, triton_grpc_port=9000)) == [8002, 8013, 9000, 8015]
    neighbours = [port for number in range(8001, 8010) for port in ports(ServeSettings(port=number))]
    assert len(set(neighbours)) == len(neighbours)
    for port in (1, 80, 5000, 8080, 9001, 30000, 65535):
        assert len({*ports(ServeSettings(port=port))}) == 4
        assert all(1 <= each <= 65535 for each in ports(ServeSettings(port=port)))


@pytest.mark.parametrize(
    ("host", "url"), [("localhost", "localhost"), ("::1", "[::1]"), ("::", "[::1]"), ("0.0.0.0", "localhost")]
)
def test_where_the_adapter_is_asked(host, url):
    assert ServeSettings(host=host).url == f"http://{url}:8001"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("SERVE_HOST", "http://0.0.0.0", "SERVE_HOST: 'http://0.0.0.0' is neither an address nor a name"),
        ("SERVE_HOST", "nobody.invalid", "SERVE_HOST: 'nobody.invalid' is neither"),
        ("SERVE_HOST", "ü" * 70, "SERVE_HOST: .* is neither"),
        ("SERVE_TRITON_HOST", "::1", "SERVE_TRITON_HOST: Triton listens on an IPv4 address, and ::1 is none"),
        ("SERVE_HOST", "192.0.2.1", "192.0.2.1 is no address of this machine; set SERVE_HOST"),
        ("SERVE_TRITON_HOST", "192.0.2.1", "192.0.2.1 is no address of this machine; set SERVE_TRITON_HOST"),
    ],
)
def test_a_host_that_cannot_be_is_refused_by_name(monkeypatch, name, value, sentence):
    monkeypatch.setenv("SERVE_PORT", str(lone_port()))
    monkeypatch.setenv(name, value)
    with pytest.raises(ServingError, match=sentence):
        check_ports(ServeSettings.from_environment())


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:8010", "grpc://triton:8001", "triton", "triton:8001/", "::1:8001", ""),
        *("triton:0", "triton:65536", "dns:///triton"),
    ],
)
def test_what_is_no_host_and_port_of_triton_is_refused_with_an_example(url):
    with pytest.raises(ValueError, match=r"host:port of Triton's gRPC endpoint, such as 127\.0\.0\.1:8011"):
        Settings(triton_url=url)


def test_the_sentence_names_the_setting(monkeypatch):
    monkeypatch.setenv("ADAPTER_TRITON_URL", "http://a:1")
    with pytest.raises(SettingsError, match=r"^ADAPTER_TRITON_URL: 'http://a:1' is not the host:port [^\n]*\.$"):
        Settings.from_environment()


@pytest.mark.parametrize("url", ["127.0.0.1:8011", "triton:8001", "[::1]:8001", "unix:/run/triton.sock", "dns:///a:1"])
def test_what_grpc_takes_is_taken(url):
    assert Settings(triton_url=url).triton_url == url


@pytest.mark.parametrize("host", ["http://0.0.0.0", "nobody.invalid", "ü" * 70])
def test_where_the_adapter_cannot_listen_is_said(host):
    with pytest.raises(SettingsError, match=r"ADAPTER_HOST, ADAPTER_PORT: .* cannot be listened on"):
        listen(host, free_ports(1)[0])


@pytest.mark.parametrize("host", ["localhost", "::1", "0.0.0.0"])
def test_the_adapter_listens_where_it_is_told(host):
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("a machine without IPv6")
    [port] = free_ports(1)
    told = os.environ | NOWHERE | {"ADAPTER_HOST": host, "ADAPTER_PORT": str(port), "ADAPTER_TRITON_URL": "127.0.0.1:1"}
    with subprocess.Popen([sys.executable, "-m", "client"], cwd=ROOT, env=told, stderr=subprocess.PIPE) as process:
        try:
            url = f"http://{'[::1]' if host == '::1' else 'localhost'}:{port}/health/live"
            transport = httpx.HTTPTransport(retries=8)  # 0, 0.5, 1, 2, 4 … s
            with httpx.Client(transport=transport, trust_env=False) as http:
                assert http.get(url, timeout=LIMIT_SECONDS).json() == {"status": "live"}
        finally:
            process.terminate()


@pytest.fixture
def proxied(monkeypatch) -> None:
    """A proxy for everything, where nobody answers."""
    for name, value in NOWHERE.items():
        monkeypatch.setenv(name, value)
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


async def test_the_adapter_asks_triton_past_any_proxy(stack, proxied):
    async with adapter(stack.triton_grpc) as http:
        assert (await http.post("/txt/embed", json={"input": "red"})).status_code == 200


def test_the_command_line_asks_this_machine_past_any_proxy(stack, proxied):
    for host in ("localhost", "127.0.0.1"):
        with Client(stack.adapter_url.replace("localhost", host)) as client:
            assert client.embed_text("red").ndim == 1


def stub_of(serving: int) -> psutil.Process:
    """The model's process below this one."""
    [stub] = [each for each in psutil.Process(serving).children(recursive=True) if "python_backend_stub" in each.name()]
    return stub


def test_the_models_process_has_the_shared_library_of_our_own_python(stack):
    [library] = {
        Path(line.split(maxsplit=5)[-1])
        for line in Path(f"/proc/{stub_of(stack.stack.triton.popen.pid).pid}/maps").read_text().splitlines()
        if "/libpython3." in line
    }
    ours = interpreter.libpython()
    assert ours is not None
    assert library == ours.resolve()
    assert library.is_relative_to(Path(sys.base_prefix).resolve())


@contextmanager
def served(folder: Path, **environment: str):
    """A checkout's own server, by the Python of its own `.venv`; yields the process when it serves."""
    command = [str(folder / ".venv" / "bin" / "python"), "-m", "qwen3_vl_embed.serving"]
    told = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))} | environment
    with subprocess.Popen(command, cwd=folder, env=told, stderr=subprocess.PIPE, encoding="utf-8") as process:
        try:
            printed = []
            for line in process.stderr or ():
                printed.append(line)
                if "stop: Ctrl-C" in line:
                    break
            else:
                raise AssertionError("".join(printed))
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


@pytest.fixture
def checkout(tmp_path):
    """One with an environment of its own, as `make setup` leaves it.

    The folder's name holds words of a shell, the linker and Rich, and more than ASCII.
    """
    folder = tmp_path / "größe [/red] $(touch ran) 'a \"b;touch ran;"
    for part in ("qwen3_vl_embed", "client", "model_repository"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    print_it = ["make", "--no-print-directory", "--eval", "finds: ; @printf '%s' \"$$FINDS\"", "finds"]
    finds = subprocess.run(print_it, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for place, name in ((sysconfig.get_path("purelib"), "packages"), ("model_repository/qwen3_vl_embed/1", "embedder")):
        subprocess.run([folder / ".venv" / "bin" / "python", "-c", finds, place, name], cwd=folder, check=True)
    return folder


@pytest.mark.faults
def test_a_model_process_whose_python_does_not_start_ends_the_start(checkout):
    """A file of packages' places that ASCII cannot read: the stub dies before it says anything, and Triton waits."""
    [packages] = (checkout / ".venv" / "lib").glob("python3.*/site-packages")
    (packages / "mine.pth").write_text("größe\n", "utf-8")
    told = {name: str(port) for name, port in serve_settings().ports.items()} | {"CHECKPOINT": str(CHECKPOINT)}
    said = "triton did not start: Failed to import the site module"
    with pytest.raises(AssertionError, match=said), served(checkout, **told):
        pass


@pytest.mark.faults
def test_a_checkout_in_any_folder_serves_what_is_written_in_any_language(stack, checkout, tmp_path):
    folder = checkout
    checkpoint = folder / "modèle"
    shutil.copytree(CHECKPOINT, checkpoint)
    config = checkpoint / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("{", '{\n "beschrieben": "größe 赤",', 1), "utf-8")
    (checkpoint / "lies-mich-größe.txt").write_text("größe", "utf-8")
    settings = serve_settings()
    told = {"CHECKPOINT": str(checkpoint), "EMBED_PROMPT": PROMPT, "SERVE_HOST": "localhost", "LC_ALL": "C"}
    told |= NOWHERE | {name: str(port) for name, port in settings.ports.items()}
    url = f"http://127.0.0.1:{settings.port}"
    with served(folder, **told) as process, httpx.Client(trust_env=False) as http:
        here = http.post(f"{url}/txt/embed", json={"input": "rötlich"}, timeout=60).json()["embedding"]
        about = http.get(f"{url}/info").json()["model"]
        assert about["checkpoint"] == str(checkpoint)
        assert about["prompt"] == PROMPT
        words = stub_of(process.pid).cmdline()
        assert all(PLAIN.fullmatch(word) for word in words[:2])
        links = list(Path("/dev/shm").glob(f"qwen3_vl_embed_{process.pid}_*"))
        assert any(link.is_symlink() for link in links)
    asked = {"input": "rötlich", "prompt": PROMPT}
    there = httpx.post(f"{stack.adapter_url}/txt/embed", json=asked, timeout=60).json()["embedding"]
    assert np.dot(here, there) > 0.99999
    assert list(tmp_path.rglob("ran*")) == []
    assert not any(link.is_symlink() for link in links)


@pytest.mark.faults
def test_a_setting_that_is_not_utf8_is_refused_by_name():
    asked = "from embedder.config import EmbedderConfig; EmbedderConfig.from_environment()"
    told = os.environ | {"EMBED_CHECKPOINT": "x", "EMBED_PROMPT": os.fsdecode(b"caf\xe9 {content}")}
    folder = ROOT / "model_repository" / "qwen3_vl_embed" / "1"
    done = subprocess.run([sys.executable, "-c", asked], cwd=folder, env=told, capture_output=True, text=True)
    assert "EMBED_PROMPT: " in done.stderr
    assert "utf-8" in done.stderr
