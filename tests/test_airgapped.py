"""Without a network: nothing that serves asks for one, and a checkpoint that is not here is a sentence.

In a network namespace of its own, which has no way out. What would ask all the same is told of a proxy on the loopback
interface, which writes down who comes. The containers' half is in test_containers.py.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from qwen3_vl_embed import Client
from qwen3_vl_embed.cli.validation import swatch
from qwen3_vl_embed.serving.settings import ROOT
from tests.waits import LIMIT_SECONDS

pytestmark = pytest.mark.faults
ALONE = ["unshare", "--net", sys.executable, "-c"]
PROXY = """
import json, os, socket, subprocess, threading
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
asked, proxy = [], socket.create_server(("127.0.0.1", 0))

def listen():
    while True:
        connection, _ = proxy.accept()
        asked.append(connection.recv(200).decode("latin-1"))
        connection.close()

threading.Thread(target=listen, daemon=True).start()
for name in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ[name] = os.environ[name.upper()] = f"http://127.0.0.1:{proxy.getsockname()[1]}"
"""
SERVES = (
    PROXY
    + """
from qwen3_vl_embed import Client
from qwen3_vl_embed.cli.validation import swatch
from tests.conftest import running
with running() as stack, Client(stack.adapter_url) as client:
    vectors = [client.embed_text("red").tolist(), client.embed_image(swatch("red")).tolist()]
print(json.dumps([asked, vectors]))
"""
)
LOADS = (
    PROXY
    + """
from embedder import Embedder, EmbedderConfig, EmbedError
try:
    Embedder.load(EmbedderConfig(checkpoint="Qwen/Qwen3-VL-4B-Instruct", device="cpu"))
except EmbedError as error:
    print(json.dumps([asked, str(error)]))
"""
)


def alone(program: str, **environment: str) -> list:
    """What the program prints in its last line, in a namespace without a network."""
    if not shutil.which("ip") or subprocess.run([*ALONE[:2], "true"], capture_output=True).returncode:
        pytest.skip("needs root, unshare and ip")
    online = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    path = os.pathsep.join([str(ROOT), str(ROOT / "model_repository" / "qwen3_vl_embed" / "1")])
    environment = online | {"PYTHONPATH": path} | environment
    done = subprocess.run(
        [*ALONE, program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=5 * LIMIT_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.stack
def test_what_serves_asks_nobody(stack):
    """No hub, no telemetry, no check for updates; and the vectors are those that it gives anywhere."""
    asked, vectors = alone(SERVES)
    assert asked == []
    with Client(stack.adapter_url) as client:
        there = [client.embed_text("red"), client.embed_image(swatch("red"))]
    assert (np.array(vectors) * np.array(there)).sum(axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_checkpoint_that_is_not_here_is_a_sentence(tmp_path, offline):
    """The first, which asks, shows that the proxy sees who does."""
    asked, told = alone(LOADS, HF_HUB_OFFLINE=offline, HF_HOME=str(tmp_path))
    assert told.startswith("Qwen/Qwen3-VL-4B-Instruct is neither a folder here nor a checkpoint that the hub gave")
    assert told.endswith("give a folder, or a hub id such as Qwen/Qwen3-VL-4B-Instruct")
    assert bool(asked) == (offline == "0")
