"""A model that takes seconds for a text, behind the real Triton and adapter: patience is the model's own.

It is slow by what it computes: many layers, and thousands of tokens after each text. With SLOW_SECONDS=30 a text takes
half a minute, and all of this most of an hour (docs/log.md); 2 s are above every fixed patience that there was.
"""

import io
import os
import threading
import time
from base64 import b64encode

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
from tests.in_process import adapter
from tests.reference import random_checkpoint
from tests.waits import SLACK_SECONDS, SLOWER, items_in_flight, until

SECONDS = float(os.environ.get("SLOW_SECONDS", "2"))  # about what a text takes, on two quiet cores
LAYERS = round(25 * SECONDS)
PATIENCE = 300  # the benchmark's client's
PROMPT = "{content}\n" + "red " * 1900
SEEN_SECONDS = 10  # README: a model that cannot answer is seen
PATHS = ("/txt/embed", "/v1/embeddings")
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
    with LocalProvider(entry, slow.adapter_url) as found:
        yield found


def stub(slow) -> psutil.Process:
    below = psutil.Process(slow.stack.triton.popen.pid).children(recursive=True)
    return next(each for each in below if each.name().startswith("triton_python"))


def lone_seconds(slow) -> float:
    shown = httpx.get(f"{slow.adapter_url}/info").json()["model"]["warm_up"]
    return shown["pass"] + shown["text"]


def test_it_comes_up_and_says_what_it_is_at(slow, console):
    said = console.file.getvalue()
    for part in ("reading the weights of", "warming up", "s so far", "s more for each short text"):
        assert part in said
    assert httpx.get(f"{slow.adapter_url}/health").status_code == 200
    assert lone_seconds(slow) > SECONDS / 2, "it is no slow model"


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


@pytest.mark.parametrize("path", PATHS)
def test_a_list_that_cannot_be_embedded_in_time_is_refused_at_once_and_told_how_many_can(slow, path):
    started = time.monotonic()
    answer = httpx.post(f"{slow.adapter_url}{path}", json={"input": list(PALETTE.names[:256])}, timeout=PATIENCE)
    assert time.monotonic() - started < SLACK_SECONDS  # they would take minutes
    assert "At most about" in final(answer)


def final(answer) -> str:
    """What it says that the deadline is too short; none of the words for which the benchmark would send it again."""
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400
    assert "ADAPTER_DEADLINE_SECONDS" in message
    assert not any(word in message for word in ("429", "rate limit", "524", "timeout"))
    return message


def test_where_no_deadline_is_set_every_item_is_answered_alone(slow):
    """Four times what the slowest takes: a swatch, which holds more tokens than a name."""
    info = httpx.get(f"{slow.adapter_url}/info").json()
    shown = info["model"]["warm_up"]
    slowest = shown["pass"] + max(shown["text"], shown["image"])
    assert info["adapter"]["limits"]["deadline_seconds"] == pytest.approx(max(60, 4 * slowest), rel=0.01)


async def test_a_deadline_that_no_item_can_keep_is_a_sentence_at_once(slow):
    async with adapter(slow.triton_grpc, deadline_seconds=lone_seconds(slow) / 2) as http:
        for path, item in (("/txt/embed", "unheard"), ("/img/embed", b64encode(SWATCHES[0]).decode())):
            started = time.monotonic()
            assert "takes about" in final(await http.post(path, json={"input": item}))
            assert time.monotonic() - started < SLACK_SECONDS
        assert (
            await http.post("/txt/embed", json={"input": "unheard", "layer": 0})
        ).status_code == 200  # that is quick
        assert (await http.post("/debug/render", json={"text": "unheard"})).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_who_comes_while_it_is_busy_is_told_to_come_back_and_not_kept_until_the_deadline(slow, provider, path):
    """What both ask for cannot be answered in time, whatever is first. Asking again is worth it when one is done.

    Nor could it be if the model were four times faster than at its warm-up, which may have met with neighbours.
    """
    answers, takes = [], lone_seconds(slow)

    def ask(items: list[str], seconds: float = PATIENCE) -> None:
        url, headers = f"{slow.adapter_url}{path}", {"x-timeout": f"{seconds}"}
        answers.append(httpx.post(url, json={"input": items}, headers=headers, timeout=PATIENCE))

    number = 100 * (1 + PATHS.index(path))  # the cache knows what was asked before
    first = threading.Thread(target=ask, args=(list(PALETTE.names[number : number + min(4, provider.max_batch)]),))
    first.start()
    until(lambda: items_in_flight(slow.adapter_url))
    ask([PALETTE.names[number + 50]], 1.1 * takes)
    assert answers[0].status_code == 429
    assert answers[0].json()["error"]["type"] == "overloaded_error"
    assert int(answers[0].headers["retry-after"]) >= min(60, takes / SLOWER)
    first.join()
    assert answers[1].status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_who_cannot_wait_as_long_as_it_takes_gets_a_504_that_says_timeout(slow, path):
    started, seconds = time.monotonic(), lone_seconds(slow) / (2 * SLOWER)  # it may be faster than at its warm-up
    answer = httpx.post(
        f"{slow.adapter_url}{path}",
        json={"input": f"unheard {path}"},
        headers={"x-timeout": f"{seconds}"},
        timeout=PATIENCE,
    )
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout_error")
    assert answer.json()["error"]["message"].startswith("timeout: the request took longer than")
    assert time.monotonic() - started < seconds + SLACK_SECONDS


@pytest.mark.parametrize(("break_it", "busy"), [(psutil.Process.suspend, True), (psutil.Process.kill, False)])
def test_a_hanging_and_a_dead_model_process_are_seen_in_time_all_the_same(slow, break_it, busy):
    """In the middle of a pass, for which somebody waits, and idle."""
    answers = []

    def ask() -> None:
        body = {"input": f"{break_it.__name__} {time.time()}"}
        answers.append(httpx.post(f"{slow.adapter_url}/txt/embed", json=body, timeout=PATIENCE))

    time.sleep(4)  # the watchdog has seen it idle
    caller = threading.Thread(target=ask)
    if busy:
        caller.start()
        time.sleep(SECONDS / 4)
    triton, started = slow.stack.triton, time.monotonic()
    break_it(stub(slow))
    until(lambda: not triton.alive)
    assert time.monotonic() - started < SEEN_SECONDS * SLOWER
    if busy:
        slow.stack._restart("triton")
        caller.join()
        assert answers[0].status_code in (200, 429, 504)  # by when it is back, too little of the deadline may be left
