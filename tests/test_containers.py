"""The container files agree with the settings and each other (fast); and they build and run (marker `containers`).

The slow half builds both images with buildah on stand-in base images (tests/stand_in.py), brings up the `cpu` profile
with podman-compose and treats it badly. Not tested here: a GPU, and the real base images.
"""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import stand_in
import yaml

from client.settings import Settings
from client.triton.pace import DEADLINE_SECONDS
from embedder import EmbedderConfig
from tests.waits import LIMIT_SECONDS

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILES = {"triton": ROOT / "deploy" / "triton.Dockerfile", "adapter": ROOT / "deploy" / "adapter.Dockerfile"}
TINY = ROOT / "checkpoints" / "qwen3-vl-color-tiny"
WATCHDOG = ROOT / "qwen3_vl_embed" / "serving" / "watchdog.py"

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
each_image = pytest.mark.parametrize("kind", DOCKERFILES)


def default(value):
    """What `${NAME:-default}` becomes where nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def services(kind):
    return [service for name, service in SERVICES.items() if name.removesuffix("-cpu") == kind]


def test_plain_up_is_the_4b_on_a_gpu_and_the_cpu_profile_the_tiny_one():
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {"triton", "adapter"}
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["cpu"]} == {
        "triton-cpu",
        "adapter-cpu",
    }
    gpu, cpu = services("triton")
    assert default(gpu["environment"]["EMBED_CHECKPOINT"]) == "Qwen/Qwen3-VL-4B-Instruct"
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert f"./checkpoints/{TINY.name}:{cpu['environment']['EMBED_CHECKPOINT']}:ro" in cpu["volumes"]
    assert cpu["environment"]["EMBED_DEVICE"] == "cpu"
    assert "deploy" not in cpu


def test_only_the_adapter_is_published_where_models_yaml_says():
    for adapter in services("adapter"):
        assert [default(port) for port in adapter["ports"]] == [f"{Settings().port}:8000"]
    assert not any("ports" in triton for triton in services("triton"))


@each_service
def test_each_service_is_restarted_and_hardened(service):
    assert service["restart"] == "unless-stopped"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_each_adapter_waits_for_its_triton_and_finds_it():
    for suffix in ("", "-cpu"):
        adapter = SERVICES[f"adapter{suffix}"]
        assert adapter["depends_on"] == {f"triton{suffix}": {"condition": "service_healthy"}}
        assert adapter["environment"]["ADAPTER_TRITON_URL"] == f"triton{suffix}:8001"


def test_weights_are_kept_between_starts():
    folder = re.search(r"HF_HOME=(\S+)", DOCKERFILES["triton"].read_text())[1]
    assert f"hub:{folder}" in SERVICES["triton"]["volumes"]
    assert "hub" in COMPOSE["volumes"]


@pytest.mark.parametrize(
    ("kind", "settings", "fixed"),
    [("triton", EmbedderConfig, set()), ("adapter", Settings, {"ADAPTER_HOST", "ADAPTER_PORT", "ADAPTER_MODEL_NAME"})],
)
def test_every_setting_reaches_its_container(kind, settings, fixed):
    prefix = settings.model_config["env_prefix"]
    for service in services(kind):
        passed = {name for name in service["environment"] if name.startswith(prefix)}
        assert passed == {prefix + name.upper() for name in settings.model_fields} - fixed
        if kind == "adapter":  # as docs/operations.md has them
            assert {"OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"} <= service["environment"].keys()


def test_a_checkpoint_and_a_calibration_of_ones_own_are_mounted():
    """And where none is named, something that exists: an engine would make a folder of it."""
    gpu, cpu = services("triton")
    for file, services_of_it in {"/checkpoint": [gpu], "/run/calibration.npz": [gpu, cpu]}.items():
        for service in services_of_it:
            [mounted] = [volume for volume in service["volumes"] if f":{file}:ro" in volume]
            assert (ROOT / default(mounted).partition(":")[0]).exists()
            assert mounted in (ROOT / "docker-compose.yml").read_text()


def test_a_proxy_and_a_mirror_reach_what_downloads_and_the_services_stay_direct():
    proxies = {name for upper in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY") for name in (upper, upper.lower())}
    for service in services("triton"):
        assert {*proxies, "HF_TOKEN", "HF_ENDPOINT"} <= service["environment"].keys()
    for service in [*services("triton"), *services("adapter")]:
        assert proxies <= service["build"]["args"].keys()
    for given in ("environment", "build"):
        passed = SERVICES["triton"][given] if given == "environment" else SERVICES["triton"]["build"]["args"]
        for name in ("NO_PROXY", "no_proxy"):
            direct = re.sub(r"\$\{(\w+):-\}", r"\1.example", passed[name]).split(",")
            assert {"localhost", "127.0.0.1", *services_by_name(), "NO_PROXY.example", "no_proxy.example"} == {*direct}


def services_by_name():
    return [name for name in SERVICES if name.split("-")[0] in ("triton", "adapter")]


def test_grace_periods_are_long_enough():
    exit_timeout = int(re.search(r"--exit-timeout-secs=(\d+)", DOCKERFILES["triton"].read_text())[1])
    for kind, needed in (("triton", exit_timeout), ("adapter", DEADLINE_SECONDS)):
        assert all(int(service["stop_grace_period"].removesuffix("s")) > needed for service in services(kind))


@each_image
def test_base_images_are_the_same_in_both_files(kind):
    declared = re.search(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILES[kind].read_text(), re.MULTILINE)[1]
    for service in services(kind):
        assert default(service["build"]["args"]["BASE_IMAGE"]) == declared
        assert ROOT / service["build"]["dockerfile"] == DOCKERFILES[kind]


@each_image
def test_images_are_not_root_check_their_health_and_hash_what_they_install(kind):
    text = DOCKERFILES[kind].read_text()
    assert "\nUSER 1000\n" in text
    assert re.search(r"^HEALTHCHECK .*--start-period", text, re.MULTILINE)
    assert "--require-hashes" in text


def test_triton_is_run_by_the_watchdog_which_closes_what_nobody_needs():
    """tests/test_security.py asks that on the real Triton, which `serving` runs through the same program."""
    command = re.search(r"^CMD (\[.*\])$", DOCKERFILES["triton"].read_text().replace("\\\n", ""), re.MULTILINE)
    assert json.loads(command[1])[:3] == ["python3", "/opt/watchdog.py", "tritonserver"]
    assert not any("command" in service or "ports" in service for service in services("triton"))


def test_triton_is_called_healthy_by_the_same_rule_everywhere():
    image = re.search(r"^HEALTHCHECK (.*) CMD (.*)$", DOCKERFILES["triton"].read_text(), re.MULTILINE)
    for service in services("triton"):
        check = service["healthcheck"]
        options = {name: check[name.replace("-", "_")] for name in ("interval", "timeout", "start-period", "retries")}
        assert image[1] == " ".join(f"--{name}={value}" for name, value in options.items())
        assert ["CMD", *json.loads(image[2])] == check["test"]


@each_image
def test_the_build_context_holds_what_is_copied_and_no_weights(kind):
    everything, *rules = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    allowed = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    words = re.findall(r"^COPY (\S+)", DOCKERFILES[kind].read_text(), re.MULTILINE)
    copied = {word.replace("${REQUIREMENTS}", which) for word in words for which in ("server", "lora")}
    assert everything == "*"
    assert copied <= set(allowed)
    assert all((ROOT / path).exists() for path in copied)
    assert not any(path.startswith("checkpoints") for path in allowed)


def test_the_watchdog_sends_what_the_model_takes():
    spec = spec_from_file_location("watchdog", WATCHDOG)
    watchdog = module_from_spec(spec)
    spec.loader.exec_module(watchdog)
    config = (ROOT / "model_repository" / "qwen3_vl_embed" / "config.pbtxt").read_text()
    inputs = re.search(r"^input \[(.*?)^\]", config, re.MULTILINE | re.DOTALL)[1]
    for probe in (watchdog.LIGHT, watchdog.WHOLE):
        assert [item["name"] for item in json.loads(probe)["inputs"]] == re.findall(r'name: "(\w+)"', inputs)
    assert re.search(r'^name: "(\w+)"', config, re.MULTILINE)[1] in watchdog.PATH


def test_the_watchdog_ends_as_its_command_ends():
    assert subprocess.run([sys.executable, WATCHDOG, "sh", "-c", "exit 3"]).returncode == 3


def test_the_watchdog_passes_sigterm_on():
    script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen([sys.executable, WATCHDOG, "sh", "-c", script], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.terminate()
        assert process.wait(LIMIT_SECONDS) == 7


@pytest.mark.parametrize("first", [False, True], ids=["", "as the first process of a container"])
def test_a_sigterm_that_comes_while_the_watchdog_starts_is_passed_on(tmp_path, first):
    """The kernel drops it for a first process that has no handler yet; for others it would leave no time to stop."""
    slow = "import time\nprint('starting', flush=True)\ntime.sleep(1)\ndef token_hex(n): return '00' * n\n"
    (tmp_path / "secrets.py").write_text(slow)  # one of its imports
    container = ["unshare", "--pid", "--fork", "--kill-child"] if first else []
    if first and subprocess.run([*container, "true"], capture_output=True).returncode:
        pytest.skip("needs a namespace of processes")
    command = [*container, sys.executable, WATCHDOG, "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.05; done"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True) as process:
        try:
            process.stdout.readline()
            [child] = psutil.Process(process.pid).children() if first else [psutil.Process(process.pid)]
            child.terminate()
            assert process.wait(LIMIT_SECONDS) in (
                7,
                128 + signal.SIGTERM,
            )  # before its command has set its trap, or after
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


NOTED = """
if [ "$EMBED_GRAPHS" = false ]; then sleep 2; echo "without, $WATCHDOG_NOTE"; exit 5; fi
(sleep 1.2; touch "$WATCHDOG_NOTE") & touch "$WATCHDOG_NOTE"; exec sleep 60
"""


def test_the_watchdog_starts_once_more_without_graphs_after_a_note():
    """Whatever the command does after it: a Triton whose model is gone may stay, and another GPU's model fails too."""
    done = subprocess.run(
        [sys.executable, WATCHDOG, "sh", "-c", NOTED], capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    assert done.returncode == 5
    assert done.stdout == "without, \n"  # the second one can leave no note
    assert "no CUDA graph could be captured: Triton starts again without" in done.stderr


def test_the_watchdog_starts_nothing_more_after_a_sigterm():
    script = 'trap "exit 7" TERM; touch "$WATCHDOG_NOTE"; echo ready; kill -TERM $PPID; while :; do sleep 0.05; done'
    with subprocess.Popen([sys.executable, WATCHDOG, "sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.wait(LIMIT_SECONDS) == 7


def test_on_a_cpu_triton_sees_no_gpu():
    """Or it would make a model process for each: CUDA hides all of them behind an empty name."""
    command = [sys.executable, WATCHDOG, "sh", "-c", 'echo "$CUDA_VISIBLE_DEVICES"']
    for device, seen in {"cpu": "\n", "auto": "0,1\n"}.items():
        given = os.environ | {"CUDA_VISIBLE_DEVICES": "0,1", "EMBED_DEVICE": device}
        assert subprocess.check_output(command, env=given, text=True, timeout=LIMIT_SECONDS) == seen


BEATS = """
import sys
from threading import Thread
from time import sleep
sys.path.insert(0, {path!r})
from embedder.pipeline import BEATING, PR_SET_NAME
import ctypes
def look():
    ctypes.CDLL(None).prctl(PR_SET_NAME, BEATING, 0, 0, 0)
    while True: sleep({seconds})
Thread(target=look, daemon=True).start()
print("ready", flush=True)
sleep(60)
"""


@pytest.mark.faults
@pytest.mark.parametrize(("seconds", "works"), [(1e-4, True), (60, False)], ids=["waits for its GPU", "is frozen"])
def test_a_quiet_process_that_looks_at_its_gpu_is_no_hang(seconds, works):
    """Waiting takes next to no CPU time; the looks are counted by the kernel."""
    watchdog = loaded_watchdog()
    program = BEATS.format(path=str(ROOT / "model_repository" / "qwen3_vl_embed" / "1"), seconds=seconds)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            time.sleep(0.3)  # imports are over
            watch = watchdog.Watch(watchdog.Triton(os.getpid(), "", 0))
            before = {process.pid: watch._triton.workers()[process.pid]}
            time.sleep(watchdog.PROBE_SECONDS)
            after = watch._triton.workers()[process.pid]
            assert (after - before[process.pid] > watchdog.WORKING * watchdog.PROBE_SECONDS) == works
        finally:
            process.kill()


def loaded_watchdog():
    spec = spec_from_file_location("watchdog", WATCHDOG)
    watchdog = module_from_spec(spec)
    spec.loader.exec_module(watchdog)
    return watchdog


def test_the_watchdog_reads_any_name_that_a_process_has(tmp_path):
    """Of a name in UTF-8 the kernel keeps 15 bytes, and may cut a character."""
    named = tmp_path / "sleeps-in-größe"
    shutil.copy(shutil.which("sleep"), named)
    spec = spec_from_file_location("watchdog", WATCHDOG)
    watchdog = module_from_spec(spec)
    spec.loader.exec_module(watchdog)
    with subprocess.Popen([named, "60"]) as process:
        try:
            deadline = time.monotonic() + 10
            while Path(f"/proc/{process.pid}/comm").read_bytes()[:5] != b"sleep" and time.monotonic() < deadline:
                time.sleep(0.01)
            with pytest.raises(UnicodeDecodeError):
                Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8")
            assert process.pid in watchdog.Triton(os.getpid(), "", 0).workers()
        finally:
            process.kill()


class Deployment:
    """The `cpu` profile, running under a name and on a port of its own."""

    def __init__(self, base_images):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.environment = base_images | {"PUBLISHED_PORT": str(port)}
        self.http = httpx.Client(base_url=f"http://localhost:{port}", timeout=60, trust_env=False)

    def compose(self, *words):
        return stand_in.run("podman-compose", "-p", "embed-test", "--profile", "cpu", *words, **self.environment)

    def wait(self, status, seconds):
        """Until /health says `status` (None: no answer at all)."""
        deadline = time.monotonic() + seconds
        while (seen := self._health()) != status:
            assert time.monotonic() < deadline, f"/health says {seen}, not {status}:\n{self.compose('logs')[-5000:]}"
            time.sleep(0.1)

    def _health(self):
        try:
            return self.http.get("/health", timeout=5).status_code
        except httpx.TransportError:
            return None

    def inspect(self, service, template):
        return stand_in.run("podman", "inspect", f"embed-test_{service}_1", "--format", template).strip()

    def left(self, kind):
        filtered = ["--filter", "label=io.podman.compose.project=embed-test"]
        return stand_in.run("podman", kind, "ls", "-q", *(["-a"] if kind == "container" else []), *filtered).split()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    if reason := stand_in.missing():
        pytest.skip(reason)
    deployment = Deployment(stand_in.base_images(tmp_path_factory.mktemp("stand-in")))
    deployment.compose("build", "triton-cpu", "adapter-cpu")
    try:
        deployment.compose("up", "-d", "--no-build", "adapter-cpu")
        deployment.wait(200, 180)
        yield deployment
    finally:
        deployment.compose("down", "-v")


@pytest.mark.containers
def test_texts_are_embedded(deployment):
    one = deployment.http.post("/txt/embed", json={"input": "red"}).json()
    many = deployment.http.post("/txt/embed", json={"input": ["red", "deep blue"]}).json()
    dimension = json.loads((TINY / "config.json").read_text())["text_config"]["hidden_size"]
    assert list(one) == list(many) == ["embedding"]
    assert np.shape(many["embedding"]) == (2, dimension)
    assert np.linalg.norm(many["embedding"], axis=1) == pytest.approx(1, abs=1e-5)
    assert one["embedding"] == pytest.approx(many["embedding"][0], abs=1e-5)


@pytest.mark.containers
def test_images_are_embedded(deployment):
    image = base64.b64encode((ROOT / "examples" / "red.png").read_bytes()).decode()
    bare = deployment.http.post("/img/embed", json={"content": image}).json()
    url = deployment.http.post("/img/embed", json={"input": [f"data:image/png;base64,{image}"]}).json()
    assert np.linalg.norm(bare["embedding"]) == pytest.approx(1, abs=1e-5)
    assert url["embedding"][0] == pytest.approx(bare["embedding"], abs=1e-5)
    assert deployment.http.post("/img/embed", json={"input": "no image"}).status_code == 400


@pytest.mark.containers
@pytest.mark.parametrize("service", ["triton-cpu", "adapter-cpu"])
def test_containers_may_do_little(deployment, service):
    name = f"embed-test_{service}_1"
    assert stand_in.run("podman", "exec", name, "id", "-u").strip() == "1000"
    assert stand_in.run("podman", "exec", name, "grep", "CapBnd", "/proc/self/status").split()[1] == "0" * 16
    with pytest.raises(AssertionError, match="Read-only file system"):
        stand_in.run("podman", "exec", name, "touch", "/opt/x")
    stand_in.run("podman", "healthcheck", "run", name)


@pytest.mark.containers
def test_a_killed_adapter_comes_back(deployment):
    os.kill(int(deployment.inspect("adapter-cpu", "{{.State.Pid}}")), signal.SIGKILL)
    deployment.wait(None, 10)
    deployment.wait(200, 60)
    assert deployment.inspect("adapter-cpu", "{{.RestartCount}}") == "1"


@pytest.mark.containers
def test_a_dead_model_process_is_replaced(deployment):
    """Triton lives on without it, and would for ever: the watchdog ends the container, the engine restarts it."""
    processes = stand_in.run("podman", "top", "embed-test_triton-cpu_1", "hpid", "comm").splitlines()
    stub = next(line.split()[0] for line in processes if "triton_python" in line)
    os.kill(int(stub), signal.SIGKILL)
    deployment.wait(503, 20)
    deployment.wait(200, 120)
    assert deployment.inspect("triton-cpu", "{{.RestartCount}}") == "1"
    assert deployment.http.post("/txt/embed", json={"input": "red"}).status_code == 200


AIR_GAPPED = """
import base64, json, sys
from http.client import HTTPConnection
answers = []
for path, value in (("/txt/embed", "red"), ("/img/embed", base64.b64encode(sys.stdin.buffer.read()).decode())):
    adapter = HTTPConnection("127.0.0.1", 8080, timeout=60)
    adapter.request("POST", path, json.dumps({"input": value}), {"Content-Type": "application/json"})
    answers.append(json.load(adapter.getresponse())["embedding"])
print(json.dumps(answers))
"""


@pytest.mark.containers
def test_both_images_start_and_answer_without_a_network(deployment):
    """A checkpoint that is mounted, user 1000 and a read-only file system; nothing but the loopback interface."""
    hardened = [
        "--read-only",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--tmpfs=/tmp:exec",
        "--shm-size=2gb",
    ]
    mounted = [f"--volume={TINY}:/checkpoint:ro", "--env=EMBED_CHECKPOINT=/checkpoint", "--env=EMBED_DEVICE=cpu"]
    beside = [
        "--network=container:air-gapped-triton",
        "--env=ADAPTER_TRITON_URL=localhost:8001",
        "--env=ADAPTER_PORT=8080",
    ]
    start = ["podman", "run", "--detach", "--no-healthcheck", *hardened]
    image = (ROOT / "examples" / "red.png").read_bytes()
    try:
        stand_in.run(*start, "--name=air-gapped-triton", "--network=none", *mounted, "qwen3-vl-embed/triton")
        stand_in.run(*start, "--name=air-gapped-adapter", *beside, "qwen3-vl-embed/adapter")
        deadline = time.monotonic() + 3 * LIMIT_SECONDS
        while b"no model" in (answers := in_air_gapped(image)):
            assert time.monotonic() < deadline, stand_in.run("podman", "logs", "air-gapped-triton")[-3000:]
            time.sleep(0.5)
        links = stand_in.run("podman", "exec", "air-gapped-triton", "cat", "/proc/net/dev").splitlines()[2:]
    finally:
        for name in (
            "air-gapped-adapter",
            "air-gapped-triton",
        ):  # one after the other: the first is in the other's network
            stand_in.run("podman", "rm", "--force", "--ignore", "--time=5", name)
    assert [link.split(":")[0].strip() for link in links] == ["lo"]
    there = [
        deployment.http.post("/txt/embed", json={"input": "red"}).json()["embedding"],
        deployment.http.post("/img/embed", json={"input": base64.b64encode(image).decode()}).json()["embedding"],
    ]
    assert (np.array(json.loads(answers)) * np.array(there)).sum(axis=1) == pytest.approx(1, abs=1e-5)


def in_air_gapped(image: bytes) -> bytes:
    """The JSON of two vectors, or `no model` while there is none."""
    command = ["podman", "exec", "--interactive", "air-gapped-adapter", "python3", "-c", AIR_GAPPED]
    done = subprocess.run(command, input=image, capture_output=True, env=stand_in.ENVIRONMENT)
    return b"no model" if done.returncode else done.stdout


@pytest.mark.containers
def test_stopping_is_orderly_and_down_leaves_nothing(deployment):
    deployment.compose("stop", "adapter-cpu")
    deployment.compose("stop", "triton-cpu")
    exits = [deployment.inspect(service, "{{.State.ExitCode}}") for service in ("adapter-cpu", "triton-cpu")]
    assert exits == ["0", "0"]
    assert [len(deployment.left(kind)) for kind in ("container", "network")] == [2, 1]
    deployment.compose("down", "-v")
    assert [deployment.left(kind) for kind in ("container", "network", "volume")] == [[], [], []]
