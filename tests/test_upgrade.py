"""A new recipe beside the old one in one Triton, as docs/operations.md says; callers are switched under load."""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx
import numpy as np
import pytest

from lab.ports import free_ports
from qwen3_vl_embed.serving import tritonserver
from qwen3_vl_embed.serving.settings import ROOT
from tests.conftest import running
from tests.gateways import a_list, balancer, tell
from tests.reference import cosine
from tests.waits import LIMIT_SECONDS, until

pytestmark = [pytest.mark.stack, pytest.mark.gateways]
SAME = 0.99999
CALLERS, MORE = 8, 100  # at once; requests between one step and the next


def commands() -> str:
    """What the page has people type, from the checkout's root."""
    page = (ROOT / "docs" / "operations.md").read_text()
    [block] = [each for each in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "qwen3_vl_embed_next" in each]
    return block.split("\n\n")[0]


def repository(checkout: Path, commands: str) -> None:
    (checkout / "model_repository").mkdir()
    (checkout / "model_repository" / "qwen3_vl_embed").symlink_to(ROOT / "model_repository" / "qwen3_vl_embed")
    subprocess.run(["sh", "-euc", commands], cwd=checkout, check=True)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The stack with both models; its own adapter serves the old one."""
    checkout = tmp_path_factory.mktemp("checkout")
    repository(checkout, commands())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tritonserver, "ROOT", checkout)
        with running(ADAPTER_LOG_LEVEL="error") as started:
            yield started


@contextmanager
def adapter_of(model: str, triton: str):
    """One more adapter, as a process of its own: its address."""
    [port] = free_ports(1)
    told = {
        "ADAPTER_PORT": str(port),
        "ADAPTER_TRITON_URL": triton,
        "ADAPTER_MODEL_NAME": model,
        "ADAPTER_LOG_LEVEL": "error",
    }
    with subprocess.Popen([sys.executable, "-m", "client"], cwd=ROOT, env=os.environ | told) as process:
        try:
            until(lambda: httpx.get(f"http://127.0.0.1:{port}/health", timeout=LIMIT_SECONDS).status_code == 200)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def test_callers_are_switched_to_the_new_recipe_under_load(both, tmp_path):
    """No request is lost, each answer is of one recipe and says which, and after the switch all are of the new one."""
    old = both.adapter_url.removeprefix("http://").replace("localhost", "127.0.0.1")
    with adapter_of("qwen3_vl_embed_next", both.triton_grpc) as new:
        addresses = {"old": old, "new": new}
        recipes = {name: httpx.get(f"http://{at}/info").json()["model"]["recipe"] for name, at in addresses.items()}
        assert [recipes[name]["pooling"] for name in ("old", "new")] == ["last", "mean"]
        done: list[tuple[float, str, dict, httpx.Response]] = []
        over = False
        with (
            balancer(addresses, free_ports(1)[0], tmp_path) as url,
            httpx.Client(base_url=url, timeout=LIMIT_SECONDS) as http,
            ThreadPoolExecutor(CALLERS) as pool,
        ):
            tell(tmp_path, "set server adapters/new state maint")

            def call(caller: int) -> None:
                for turn in count():
                    if over:
                        return
                    path, body = a_list(caller, turn)
                    sent = time.monotonic()
                    done.append((sent, path, body, http.post(path, json=body)))

            calls = [pool.submit(call, caller) for caller in range(CALLERS)]
            try:
                until(lambda: len(done) > MORE)
                tell(tmp_path, "set server adapters/new state ready", "set server adapters/old state drain")
                switched, at = time.monotonic(), len(done)
                until(lambda: len(done) > at + MORE or any(each.done() for each in calls))
            finally:
                over = True
            for each in calls:
                each.result()
        assert {answer.status_code for *_, answer in done} == {200}
        ids = {recipe["id"]: addresses[name] for name, recipe in recipes.items()}
        assert {answer.headers["x-recipe"] for *_, answer in done} == set(ids)
        late = {answer.headers["x-recipe"] for sent, _, _, answer in done if sent > switched}
        assert late == {recipes["new"]["id"]}
        for _, path, body, answer in done[:: max(1, len(done) // 60)]:
            alone = httpx.post(f"http://{ids[answer.headers['x-recipe']]}{path}", json=body).json()["embedding"]
            assert min(map(cosine, np.array(answer.json()["embedding"]), np.array(alone))) >= SAME


def test_a_setting_in_the_repository_that_is_none_is_refused_by_name(tmp_path, monkeypatch):
    """As in the environment: the second model does not come up with another recipe than was meant."""
    repository(tmp_path, commands().replace("EMBED_POOLING", "EMBED_POLING"))
    monkeypatch.setattr(tritonserver, "ROOT", tmp_path)
    with pytest.raises(tritonserver.ServingError, match="EMBED_POLING: no such setting"), running():
        pass
