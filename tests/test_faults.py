"""What callers see while something breaks, on real stacks: each fault has its one outcome, and serving goes on.

The stack of these tests is their own: `serving` watches it, its adapter has no cache, and it is broken again and again.
The adapter's part alone (a line that is cut or held) is in test_adapter_faults.py.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from shutil import copytree

import httpx
import numpy as np
import psutil
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file

from embedder import Embedder, EmbedderConfig, EmbedInput
from qwen3_vl_embed.evaluation.colours import png, swatch, xkcd
from qwen3_vl_embed.evaluation.retrieval import cosine
from qwen3_vl_embed.serving import stack as serving_stack
from qwen3_vl_embed.serving import tritonserver as serving_triton
from qwen3_vl_embed.serving.reaper import SHARED_MEMORY, remove_regions
from qwen3_vl_embed.serving.settings import ROOT
from qwen3_vl_embed.serving.tritonserver import Tritonserver
from tests.benchmark_client import LocalProvider
from tests.conftest import CHECKPOINT, running, serve_settings
from tests.in_process import adapter, line_to, png64, refused
from tests.waits import LIMIT_SECONDS, SLACK_SECONDS, SLOWER, eventually, items_in_flight, settled, until

SAME = 0.99999  # README: float32, in batches of any company
SEEN_SECONDS = 10  # README: a model that cannot answer is seen
DEADLINE_SECONDS = 60  # ADAPTER_DEADLINE_SECONDS
CALLERS = 24
RETRIED = ("429", "rate limit", "524", "timeout")
PALETTE = xkcd()

pytestmark = [pytest.mark.stack, pytest.mark.faults]


@contextmanager
def watching():
    """A stack that is watched as `make serve` watches it; each fault is the first one for it, so no pause grows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving_stack, "STEADY_SECONDS", 0)
        with running(ADAPTER_CACHE_BYTES="0", ADAPTER_LOG_LEVEL="error") as started:
            watcher = threading.Thread(target=started.stack.watch, args=(0.2,), daemon=True)
            watcher.start()
            yield started
            started.stack.stopping = True
            watcher.join(60)  # it may be starting something just now


@pytest.fixture(scope="module")
def watched():
    with watching() as started:
        yield started


def below(pid: int, name: str) -> psutil.Process:
    return next(each for each in psutil.Process(pid).children(recursive=True) if each.name().startswith(name))


def tritonserver(watched) -> psutil.Process:
    return below(watched.stack.triton.popen.pid, "tritonserver")


def stub(watched) -> psutil.Process:
    return below(watched.stack.triton.popen.pid, "triton_python")


def embed(url: str, text: str) -> httpx.Response:
    return httpx.post(f"{url}/txt/embed", json={"input": text}, timeout=DEADLINE_SECONDS + SLACK_SECONDS)


class Patient(LocalProvider):
    """The benchmark's client with its retry rule: after these pauses, and only for texts that hold these words."""

    sent = 0

    def _post(self, endpoint, chunk):
        self.sent += 1
        for pause in (5, 10, 20, 40):
            try:
                return super()._post(endpoint, chunk)
            except AssertionError as error:
                if not any(word in str(error) for word in RETRIED):
                    raise
            time.sleep(pause)
        return super()._post(endpoint, chunk)

    def run(self, batch: int) -> np.ndarray:
        return np.concatenate(
            [self.texts(list(PALETTE.names), batch), self.images([png(swatch(rgb)) for rgb in PALETTE.rgb], batch)]
        )


def test_the_benchmark_finishes_through_both_restarts_with_the_same_vectors(watched):
    """1,898 requests in a row; tritonserver is killed during the names, the model process during the swatches."""
    entry = yaml.safe_load((ROOT / "models.yaml").read_text())["models"]["qwen3-vl-color-tiny-dev"]
    with Patient(entry, watched.adapter_url) as calm:
        undisturbed = calm.run(64)
    with Patient(entry, watched.adapter_url) as client, ThreadPoolExecutor(1) as pool:
        through_faults = pool.submit(client.run, 1)
        for victim, when in ((tritonserver, 300), (stub, 1300)):
            until(lambda when=when: client.sent >= when)
            victim(watched).kill()
        vectors = through_faults.result(10 * LIMIT_SECONDS)
    assert client.sent == len(vectors) == 1898
    assert np.diag(cosine(vectors, undisturbed)).min() >= SAME


def in_flight(watched, break_it) -> list[tuple[int, str, float]]:
    """What each of many callers saw of a fault that came while they waited: status, text, seconds."""
    bodies = [{"input": [png64(caller, item, 0, 200) for item in range(16)]} for caller in range(CALLERS)]

    def call(body: dict) -> tuple[int, str, float]:
        started = time.monotonic()
        answer = httpx.post(f"{watched.adapter_url}/img/embed", json=body, timeout=DEADLINE_SECONDS + SLACK_SECONDS)
        return answer.status_code, answer.text[:300], time.monotonic() - started

    with ThreadPoolExecutor(CALLERS) as pool:
        calls = [pool.submit(call, body) for body in bodies]
        until(lambda: items_in_flight(watched.adapter_url) > 0)
        assert not all(each.done() for each in calls), "the fault came too late"
        break_it()
        return [each.result() for each in calls]


def assert_documented(seen: list[tuple[int, str, float]]) -> None:
    for status, text, seconds in seen:
        assert status in (200, 429, 504), text
        assert status == 200 or any(word in text for word in RETRIED), text
        assert seconds < DEADLINE_SECONDS + SLACK_SECONDS


def test_requests_in_flight_when_the_model_process_is_killed_are_answered(watched):
    first = watched.stack.triton
    assert_documented(in_flight(watched, lambda: stub(watched).kill()))
    assert watched.stack.triton is not first
    assert embed(watched.adapter_url, "red").status_code == 200


def test_a_model_process_that_hangs_is_seen_in_time_and_replaced(watched):
    """Frozen, it is neither dead nor refuses anything: only an embedding that does not come tells."""
    first, before = watched.stack.triton, embed(watched.adapter_url, "red").json()

    def freeze():
        stub(watched).suspend()
        frozen = time.monotonic()
        until(lambda: not first.alive)
        assert time.monotonic() - frozen < SEEN_SECONDS * SLOWER

    assert_documented(in_flight(watched, freeze))
    until(lambda: embed(watched.adapter_url, "red").json() == before)
    assert len(list(SHARED_MEMORY.glob(f"{watched.stack.regions}*"))) == 1  # of the new one


def test_a_frozen_instance_of_several_is_seen_though_the_other_answers(tmp_path, monkeypatch):
    """As on two GPUs. Triton goes on to give requests to the frozen one, and fails them after a second each."""
    repository = copytree(ROOT / "model_repository", tmp_path / "model_repository")
    config = repository / "qwen3_vl_embed" / "config.pbtxt"
    config.write_text(config.read_text().replace("kind: KIND_AUTO count: 1", "kind: KIND_CPU count: 2"))
    monkeypatch.setattr(serving_triton, "ROOT", tmp_path)
    with watching() as several:
        first, before = several.stack.triton, embed(several.adapter_url, "red").json()
        stub(several).suspend()
        until(lambda: not first.alive)
        until(lambda: embed(several.adapter_url, "red").json() == before)


def test_a_killed_adapter_breaks_its_connections_at_once_and_comes_back(watched):
    before = embed(watched.adapter_url, "red").json()
    with pytest.raises(httpx.TransportError):
        in_flight(watched, lambda: psutil.Process(watched.stack.adapter.popen.pid).kill())
    until(lambda: embed(watched.adapter_url, "red").json() == before)


def test_the_same_request_a_thousand_times_under_mixed_load(watched):
    """In whatever company it is batched, alone or with photos, its vector is the published one."""
    alone = np.array(embed(watched.adapter_url, "the same request").json()["embedding"])
    with httpx.Client(base_url=watched.adapter_url, timeout=LIMIT_SECONDS) as client, ThreadPoolExecutor(12) as pool:
        company = cycle([("txt", name) for name in PALETTE.names[:40]] + [("img", png64(i, i, i)) for i in range(24)])

        def call(path: str, item: str) -> list[float]:
            return client.post(f"/{path}/embed", json={"input": item}).raise_for_status().json()["embedding"]

        same = [("txt", "the same request")] * 1000
        calls = [pool.submit(call, *each) for pair in zip(same, islice(company, 1000), strict=True) for each in pair]
        vectors = np.array([each.result() for each in calls[::2]])
    assert vectors.shape == (1000, alone.size)
    assert cosine(vectors, alone[None]).min() >= SAME


async def test_a_deadline_that_passed_is_504_in_time_and_its_work_is_dropped(stack):
    images = [png64(index, 7, 7, 1024) for index in range(250)]  # two seconds of work at least
    before = settled(stack, "inputs")
    async with adapter(stack.triton_grpc, max_concurrency=400, cache_bytes=0) as http:
        started = time.monotonic()
        error = refused(await http.post("/img/embed", json={"input": images}, headers={"x-timeout": "0.4"}), 504)
        assert "timeout" in error["message"]
        assert time.monotonic() - started < 0.4 + SLACK_SECONDS
        await eventually(lambda: http.app.state.admission.pending == 0)
    assert settled(stack, "inputs") - before < 250


async def test_a_full_queue_is_429_at_once_while_what_was_taken_in_is_answered(stack):
    limits = {"max_items": 32, "max_pending_items": 64, "cache_bytes": 0}
    async with line_to(stack.triton_grpc) as line, adapter(line.url, **limits) as http:
        line.hold()
        bodies = [{"input": [png64(row, column, 9) for column in range(32)]} for row in range(6)]
        coming = asyncio.as_completed([http.post("/img/embed", json=body) for body in bodies])
        for _ in range(4):
            answer = await next(coming)
            assert "rate limit" in refused(answer, 429)["message"]
            assert int(answer.headers["retry-after"]) >= 1
        line.release()
        assert [(await answer).status_code for answer in coming] == [200, 200]
        assert (await http.post("/img/embed", json=bodies[-1])).status_code == 200


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_jumps_moves_no_deadline(stack, monkeypatch, hours):
    """While a request waits; gRPC looks at the wall clock at the instant in which a call begins, and never again."""
    wall = time.time
    async with line_to(stack.triton_grpc) as line, adapter(line.url, deadline_seconds=3, cache_bytes=0) as http:
        for answered in (False, True):
            line.hold()
            started = time.monotonic()
            request = asyncio.create_task(http.post("/txt/embed", json={"input": "waits"}))
            await eventually(lambda: http.app.state.admission.pending == 1)
            await asyncio.sleep(0.3)  # and its call began
            with monkeypatch.context() as patch:
                patch.setattr(time, "time", lambda: wall() + hours * 3600)
                await asyncio.sleep(0.3)
                assert not request.done()
                if answered:
                    line.release()
                assert (await request).status_code == (200 if answered else 504)
            assert time.monotonic() - started < 3 + SLACK_SECONDS
            line.release()


def serve(checkpoint=CHECKPOINT, stderr=subprocess.PIPE, **settings) -> tuple[subprocess.Popen, str]:
    """`python -m qwen3_vl_embed.serving`, and its address."""
    ports = serve_settings().ports | settings
    environment = os.environ | {name: str(value) for name, value in ports.items()} | {"CHECKPOINT": str(checkpoint)}
    command = [sys.executable, "-m", "qwen3_vl_embed.serving"]
    started = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stderr, stderr=stderr, text=True)
    return started, f"http://localhost:{ports['SERVE_PORT']}"


def test_a_full_disk_stops_nothing_and_a_killed_serving_leaves_nothing():
    """All that `serving` says is lost; then it is killed itself, with no time to stop what it started."""
    with open("/dev/full", "w") as full:
        started, url = serve(stderr=full)
    until(lambda: httpx.get(f"{url}/health", timeout=LIMIT_SECONDS).status_code == 200)
    assert embed(url, "red").status_code == 200
    children = psutil.Process(started.pid).children(recursive=True)
    assert {"tritonserver", "triton_python_backend_stub"} <= {child.name() for child in children}
    assert list(SHARED_MEMORY.glob(f"qwen3_vl_embed_{started.pid}_*"))
    started.kill()
    started.wait()
    _, left = psutil.wait_procs(children, LIMIT_SECONDS)
    assert left == []
    until(lambda: not list(SHARED_MEMORY.glob(f"qwen3_vl_embed_{started.pid}_*")))


def test_a_model_that_cannot_be_loaded_is_a_sentence_and_exit_1(tmp_path):
    """One without weights, and one that was cut short; at once, as they may be."""
    missing, short = tmp_path / "missing", tmp_path / "short"
    for folder in (missing, short):
        copytree(CHECKPOINT, folder)
    (missing / "model.safetensors").unlink()
    os.truncate(short / "model.safetensors", 3_000_000)
    started = {folder: serve(folder)[0] for folder in (missing, short)}
    for folder, sentence in (
        (missing, "has no *.safetensors file"),
        (short, "cannot be loaded: model.safetensors is cut"),
    ):
        said = started[folder].communicate(timeout=LIMIT_SECONDS)[1]
        assert started[folder].returncode == 1
        assert f"triton did not start: {folder} {sentence}" in said
        assert not list(SHARED_MEMORY.glob(f"qwen3_vl_embed_{started[folder].pid}_*"))


LOAD_WITH_LITTLE_MEMORY = """
import resource, sys
from embedder import Embedder, EmbedderConfig
from embedder.errors import UnsupportedCheckpoint
small, large = (EmbedderConfig(checkpoint=folder, device="cpu") for folder in sys.argv[1:])
Embedder.load(small)  # whatever is imported on the way
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26,) * 2)
try:
    Embedder.load(large)
except UnsupportedCheckpoint as error:
    print(error)
"""


def test_a_model_that_does_not_fit_into_memory_is_a_sentence(tmp_path):
    """The kernel refuses more than 64 MiB to a checkpoint whose word table alone has 256."""
    large = copytree(CHECKPOINT, tmp_path / "large")
    config = json.loads((CHECKPOINT / "config.json").read_text())
    config["text_config"]["vocab_size"] = 2**19
    (large / "config.json").write_text(json.dumps(config))
    weights = load_file(CHECKPOINT / "model.safetensors")
    table = next(name for name in weights if name.endswith("embed_tokens.weight"))
    save_file(weights | {table: np.zeros((2**19, weights[table].shape[1]), "f4")}, large / "model.safetensors")
    command = [sys.executable, "-c", LOAD_WITH_LITTLE_MEMORY, str(CHECKPOINT), str(large)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "model_repository" / "qwen3_vl_embed" / "1")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert f"{large} cannot be loaded" in done.stdout, done.stderr[-2000:]
    assert "memory" in done.stdout


@pytest.mark.parametrize("taken_by", ["somebody", "ourselves"])
def test_a_taken_port_is_a_sentence_and_exit_1(taken_by):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = serve_settings().ports
        port = taken.getsockname()[1] if taken_by == "somebody" else ports["SERVE_PORT"]
        started, _ = serve(SERVE_TRITON_GRPC_PORT=port, SERVE_PORT=ports["SERVE_PORT"])
        said = started.communicate(timeout=LIMIT_SECONDS)[1]
    assert started.returncode == 1
    assert "SERVE_TRITON_GRPC_PORT" in said
    assert str(port) in said
    assert "triton │" not in said  # nothing was started


def test_a_batch_too_large_for_memory_is_halved(monkeypatch):
    """Until it fits: everybody gets a vector, the one that they would have had."""
    embedder = Embedder.load(EmbedderConfig(checkpoint=str(CHECKPOINT), device="cpu"))
    inputs = [EmbedInput(text=name) for name in PALETTE.names[:16]]
    expected = embedder.embed(inputs)
    hidden, sizes = embedder.model.hidden, []

    def holds_three(packed, *arguments):
        sizes.append(len(packed.starts))
        if len(packed.starts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(packed, *arguments)

    monkeypatch.setattr(embedder.model, "hidden", holds_three)
    for answer, before in zip(embedder.embed(inputs), expected, strict=True):
        assert float(answer.vector @ before.vector) >= SAME
    assert sizes[0] == 16
    assert sizes.count(2) == 8


OURS = f"import sys; sys.path.insert(0, {str(ROOT / 'model_repository' / 'qwen3_vl_embed' / '1')!r})\n"
PLANTED = """

load_well = load


def load(config):
    if config.graphs:
        raise CaptureFailed("a forward pass could not be captured: planted")
    return load_well(config)
"""


def test_a_failed_capture_ends_triton_which_starts_again_without_graphs(tmp_path):
    """The real one, under the watchdog that `make serve` and the container run it by."""
    copied = copytree(ROOT / "model_repository" / "qwen3_vl_embed", tmp_path / "models" / "qwen3_vl_embed")
    glue = copied / "1" / "model.py"
    glue.write_text(OURS + glue.read_text() + PLANTED)
    settings, regions = serve_settings(), f"embed_{os.getpid()}_planted"
    server = Tritonserver.find(settings)
    own = f"--model-repository={ROOT / 'model_repository'}"
    command = [
        f"--model-repository={tmp_path / 'models'}" if word == own else word
        for word in server.command(settings, regions)
    ]
    assert own not in command
    environment = server.environment(str(CHECKPOINT), regions)
    url = f"http://localhost:{settings.triton_http_port}/v2/models/qwen3_vl_embed"
    with (tmp_path / "log").open("w+") as log:
        watchdog = subprocess.Popen(
            [sys.executable, serving_stack.WATCHDOG, *command], env=environment, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 120 * SLOWER
            while not answers(f"{url}/ready"):
                assert watchdog.poll() is None, (tmp_path / "log").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
            stats = httpx.get(f"http://localhost:{settings.triton_metrics_port}/metrics").text
        finally:
            watchdog.terminate()
            assert watchdog.wait(LIMIT_SECONDS) == 0
            remove_regions(regions)
    said = (tmp_path / "log").read_text()
    assert "a forward pass could not be captured: planted: ending; EMBED_GRAPHS=false does without" in said
    assert "watchdog: no CUDA graph could be captured: Triton starts again without" in said
    assert said.count('loading: qwen3_vl_embed:1"') == 2
    assert "qwen3_vl_embed_recordings_total 0" in stats


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False
