"""A model that takes seconds for a text, behind the real Triton and adapter: patience is the model's own.

It is slow by what it computes: many layers, and thousands of tokens after each text. 3 s a text is above every fixed
patience that there was; docs/log.md tells of the 4B at 20 to 28 s.
"""

import io
import threading
import time

import httpx
import numpy as np
import psutil
import pytest
import yaml
from rich.console import Console

from qwen3_vl_embed.evaluation.colours import png, swatch, xkcd
from qwen3_vl_embed.evaluation.retrieval import cosine
from qwen3_vl_embed.serving.settings import ROOT
from tests.benchmark_client import LocalProvider
from tests.conftest import CHECKPOINT, running
from tests.reference import random_checkpoint

LAYERS = 20
PROMPT = "{content}\n" + "red " * 1900
SEEN_SECONDS = 10  # README: a model that cannot answer is seen
PALETTE = xkcd()
SWATCHES = [png(swatch(rgb)) for rgb in PALETTE.rgb[:2]]

pytestmark = [pytest.mark.stack, pytest.mark.faults]


@pytest.fixture(scope="module")
def console():
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def slow(tmp_path_factory, console):
    folder = random_checkpoint(tmp_path_factory.mktemp("slow"), num_hidden_layers=LAYERS)
    with running(
        None,
        str(folder),
        console,
        EMBED_PROMPT=PROMPT,
        ADAPTER_LOG_LEVEL="warning",
        ADAPTER_SERVED_MODEL_NAME=CHECKPOINT.name,
    ) as started:
        yield started


@pytest.fixture
def provider(slow):
    entry = yaml.safe_load((ROOT / "models.yaml").read_text())["models"]["qwen3-vl-color-tiny-dev"]
    found = LocalProvider(entry, slow.adapter_url)
    yield found
    found.http.close()


def stub(slow) -> psutil.Process:
    below = psutil.Process(slow.stack.triton.popen.pid).children(recursive=True)
    return next(each for each in below if each.name().startswith("triton_python"))


def test_it_comes_up_and_says_what_it_is_at(slow, console):
    said = console.file.getvalue()
    for part in ("reading the weights of", "warming up", "s so far", "s more for each short text"):
        assert part in said
    assert httpx.get(f"{slow.adapter_url}/health").status_code == 200
    shown = httpx.get(f"{slow.adapter_url}/info").json()["model"]["warm_up"]
    assert shown["pass"] + shown["text"] > 1, "it is no slow model"


def test_the_benchmark_at_1_and_at_64_meets_neither_a_deadline_nor_the_watchdog(slow, provider):
    """Its client takes as many at once as /openapi.json says; any answer but a 200 fails. Ready all the while."""
    names, triton, done, health = list(PALETTE.names[:5]), slow.stack.triton, threading.Event(), []

    def watch() -> None:
        while not done.wait(0.5):
            health.append(httpx.get(f"{slow.adapter_url}/health", timeout=10).status_code)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert 1 <= provider.max_batch < 64
        batched = provider.texts(names, 64), provider.images(SWATCHES, 64)
        provider.options["pooling"] = "last"  # spelled out, or the cache would answer
        singly = provider.texts(names[:1], 1), provider.images(SWATCHES[:1], 1)
    finally:
        done.set()
        watcher.join()
    for one, many in zip(singly, batched, strict=True):
        assert np.diag(cosine(one, many[:1])).min() >= 0.9999
    assert set(health) == {200}
    assert triton.alive


def test_a_list_that_cannot_be_embedded_in_time_is_refused_at_once_and_told_how_many_can(slow):
    started = time.monotonic()
    answer = httpx.post(f"{slow.adapter_url}/txt/embed", json={"input": list(PALETTE.names[:200])}, timeout=120)
    assert time.monotonic() - started < 3
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "At most about" in message
    assert "ADAPTER_DEADLINE_SECONDS" in message
    assert not any(word in message for word in ("rate limit", "timeout"))  # the benchmark would send it again


def test_who_comes_while_it_is_busy_is_told_to_come_back_and_not_kept_until_the_deadline(slow, provider):
    """What both ask for cannot be answered in time, whatever is first."""
    answers = []

    def ask(items: list[str]) -> None:
        answers.append(httpx.post(f"{slow.adapter_url}/txt/embed", json={"input": items}, timeout=120))

    first = threading.Thread(target=ask, args=(list(PALETTE.names[100:102]),))
    first.start()
    time.sleep(0.5)
    ask(list(PALETTE.names[300 : 300 + provider.max_batch]))
    assert answers[0].status_code == 429
    first.join()
    assert answers[1].status_code == 200


def test_a_hanging_and_a_dead_model_process_are_seen_in_time_all_the_same(slow):
    for break_it in (psutil.Process.suspend, psutil.Process.kill):
        time.sleep(4)  # the watchdog has seen it idle
        triton, started = slow.stack.triton, time.monotonic()
        break_it(stub(slow))
        while triton.alive and time.monotonic() - started < 2 * SEEN_SECONDS:
            time.sleep(0.05)
        assert time.monotonic() - started < SEEN_SECONDS
        slow.stack._restart("triton")
