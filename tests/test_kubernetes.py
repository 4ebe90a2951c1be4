"""The rendered pod, run by podman: the benchmark's contract through its port, a killed container, a pod that stops.

As far as a machine without a cluster goes. Podman reads the Deployment; what a kubelet does otherwise the tests do. An
emptyDir is the pod's own, and anybody in it may write there. A port of a container is not the machine's. A container
that stops does first what its preStop says, both at once. Probes, policies and scaling are not run.
"""

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx
import numpy as np
import pytest
import stand_in
import yaml

from lab.ports import free_ports
from qwen3_vl_embed.evaluation.colours import png, swatch, xkcd
from tests.benchmark_client import LocalProvider
from tests.charts import container, pod, rendered
from tests.conftest import CHECKPOINT
from tests.gateways import a_list, balancer
from tests.reference import cosine
from tests.waits import LIMIT_SECONDS, SLOWER, until

ROOT = Path(__file__).parent.parent
CLAIM, NETWORK = "embed-test-weights", "embed-test-kube"
SAME = 0.99999
CALLERS, MORE = 8, 100
VALUES = {
    "imageRegistry": "localhost",
    "offline": True,
    "checkpoint": f"/weights/{CHECKPOINT.name}",
    "weights": {"existingClaim": CLAIM},
    "gpu": {"count": 0},
    "drainSeconds": 3,
    "adapter": {"image": {"tag": "latest"}, "settings": {"ADAPTER_DEADLINE_SECONDS": 20}},
    "triton": {"image": {"tag": "latest"}, "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "4Gi"}}},
}
pytestmark = pytest.mark.containers


class Pod:
    """One pod of a release."""

    def __init__(self, release: str, folder: Path) -> None:
        [deployment] = [each for each in rendered(VALUES, release) if each["kind"] == "Deployment"]
        self.spec = pod([deployment])
        for one in self.spec["containers"]:
            del one["ports"]
        for named in [
            *self.spec["volumes"],
            *(mount for one in self.spec["containers"] for mount in one["volumeMounts"]),
        ]:
            named["name"] = f"embed-test-{release}-{named['name']}"
        self._volumes = [volume["name"] for volume in self.spec["volumes"] if "emptyDir" in volume]
        self._file, self._name = folder / f"{release}.yaml", f"{deployment['metadata']['name']}-pod-0"
        self._file.write_text(yaml.safe_dump(deployment))

    def play(self) -> None:
        stand_in.run("podman", "kube", "play", "--start=false", "--network", NETWORK, self._file)
        stand_in.run("podman", "init", f"{self._name}-adapter", f"{self._name}-triton")
        for volume in self._volumes:
            Path(stand_in.run("podman", "volume", "inspect", volume, "--format", "{{.Mountpoint}}").strip()).chmod(
                0o1777
            )
        stand_in.run("podman", "pod", "start", self._name)
        infra = stand_in.run("podman", "pod", "inspect", self._name, "--format", "{{.InfraContainerID}}").strip()
        address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        self.address = f"{stand_in.run('podman', 'inspect', infra, '--format', address).strip()}:8080"

    def down(self) -> None:
        stand_in.run("podman", "pod", "rm", "--force", "--time", "5", self._name)
        stand_in.run("podman", "volume", "rm", "--force", *self._volumes)

    def inspect(self, name: str, template: str) -> str:
        return stand_in.run("podman", "inspect", f"{self._name}-{name}", "--format", template).strip()

    def kill(self, name: str) -> None:
        os.kill(int(self.inspect(name, "{{.State.Pid}}")), signal.SIGKILL)

    def healthy(self) -> bool:
        return httpx.get(f"http://{self.address}/health", timeout=5).status_code == 200

    def wait(self) -> None:
        try:
            until(self.healthy)
        except AssertionError:
            raise AssertionError(stand_in.run("podman", "pod", "logs", self._name)[-5000:]) from None

    def stop(self) -> None:
        """As a kubelet does, both containers at once: preStop, then SIGTERM, and SIGKILL when it is late."""

        def stop(name: str) -> None:
            command = container(self.spec, name)["lifecycle"]["preStop"]["exec"]["command"]
            left = self.spec["terminationGracePeriodSeconds"] - int(command[1])
            stand_in.run("podman", "exec", f"{self._name}-{name}", *command)
            stand_in.run("podman", "stop", "--time", str(SLOWER * left), f"{self._name}-{name}")

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(stop, ("adapter", "triton")))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Of this checkout, under compose's names."""
    if reason := stand_in.missing():
        pytest.skip(reason)
    bases = stand_in.base_images(tmp_path_factory.mktemp("stand-in"))
    stand_in.run("podman-compose", "--profile", "cpu", "build", "triton-cpu", "adapter-cpu", **bases)


@pytest.fixture(scope="module")
def place(images):
    """The claim with the checkpoint in it, and a network from which nothing gets out."""
    stand_in.run("podman", "network", "create", "--internal", NETWORK)
    stand_in.run("podman", "volume", "create", CLAIM)
    try:
        mounted = Path(stand_in.run("podman", "volume", "inspect", CLAIM, "--format", "{{.Mountpoint}}").strip())
        shutil.copytree(CHECKPOINT, mounted / CHECKPOINT.name)
        yield
    finally:
        stand_in.run("podman", "volume", "rm", "--force", CLAIM)
        stand_in.run("podman", "network", "rm", "--force", NETWORK)


@contextmanager
def playing(release: str, folder: Path):
    running = Pod(release, folder)
    try:
        running.play()
        running.wait()
        yield running
    finally:
        running.down()


@pytest.fixture(scope="module")
def first(place, tmp_path_factory):
    with playing("first", tmp_path_factory.mktemp("pods")) as running:
        yield running


def test_the_benchmarks_contract_through_the_pods_port(first, stack):
    """With the vectors that the same checkpoint gives without containers."""
    entry = yaml.safe_load((ROOT / "models.yaml").read_text())["models"]["qwen3-vl-color-tiny-dev"]
    names, swatches = list(xkcd().names[:200]), [png(swatch(rgb)) for rgb in xkcd().rgb[:100]]
    with LocalProvider(entry, f"http://{first.address}") as inside, LocalProvider(entry, stack.adapter_url) as outside:
        for batch in (1, 64):
            for found, expected in (
                (inside.texts(names, batch), outside.texts(names, batch)),
                (inside.images(swatches, batch), outside.images(swatches, batch)),
            ):
                assert min(map(cosine, found, expected)) >= SAME


def test_nothing_may_be_written_and_nobody_is_root(first):
    for name in ("adapter", "triton"):
        one = f"{first._name}-{name}"
        assert stand_in.run("podman", "exec", one, "id", "-u").strip() == "1000"
        assert stand_in.run("podman", "exec", one, "grep", "CapBnd", "/proc/self/status").split()[1] == "0" * 16
        with pytest.raises(AssertionError, match="Read-only file system"):
            stand_in.run("podman", "exec", one, "touch", "/opt/x")


@pytest.mark.parametrize("name", ["adapter", "triton"])
def test_a_killed_container_comes_back(first, name):
    before = int(first.inspect(name, "{{.RestartCount}}"))
    first.kill(name)
    until(lambda: int(first.inspect(name, "{{.RestartCount}}")) > before)
    first.wait()
    answer = httpx.post(f"http://{first.address}/txt/embed", json={"input": f"after {name}"}, timeout=LIMIT_SECONDS)
    assert answer.status_code == 200


def test_one_of_two_pods_that_stops_under_load_loses_no_request(first, tmp_path):
    with playing("second", tmp_path) as second:
        done: list[httpx.Response] = []
        over = False
        adapters = {"first": first.address, "second": second.address}
        with (
            balancer(adapters, free_ports(1)[0], tmp_path) as url,
            httpx.Client(base_url=url, timeout=LIMIT_SECONDS) as http,
            ThreadPoolExecutor(CALLERS) as pool,
        ):

            def call(caller: int) -> None:
                for turn in count():
                    if over:
                        return
                    path, body = a_list(caller, turn)
                    done.append(http.post(path, json=body))

            calls = [pool.submit(call, caller) for caller in range(CALLERS)]
            try:
                until(lambda: len(done) > MORE)
                second.stop()
                at = len(done)
                until(lambda: len(done) > at + MORE or any(each.done() for each in calls))
            finally:
                over = True
            for each in calls:
                each.result()
        assert {answer.status_code for answer in done} == {200}
        assert np.isfinite([answer.json()["embedding"] for answer in done]).all()
        assert [second.inspect(name, "{{.State.ExitCode}}") for name in ("adapter", "triton")] == ["0", "0"]
