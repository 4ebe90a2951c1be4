"""Small files that take seconds and gigabytes to decode: nobody else waits for them, and memory stays bounded.

Through the real stack. How long one such image takes here and now is measured first; the bounds are tied to it.
"""

import asyncio
import base64
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc

from tests.bad_inputs import encoded, flat_webp, solid
from tests.conftest import RunningStack
from tests.in_process import adapter, line_to, refused
from tests.waits import LIMIT_SECONDS, SLOWER, eventually, settled

pytestmark = [pytest.mark.stack, pytest.mark.faults]
EDGE = 6300  # 39.7 megapixels
COLOURS = itertools.count()


def bombs(count: int, edge: int = EDGE) -> list[str]:
    """Flat images, no two the same, so that none comes from the cache."""
    numbers = itertools.islice(COLOURS, count)
    return [base64.b64encode(flat_webp(edge, edge, (n % 256, n // 256, 7))).decode() for n in numbers]


def post(served: RunningStack, path: str, content: str | list[str], timeout: float = LIMIT_SECONDS) -> float:
    """How many seconds it took to be answered with vectors."""
    started = time.monotonic()
    httpx.post(f"{served.adapter_url}{path}", json={"input": content}, timeout=timeout).raise_for_status()
    return time.monotonic() - started


def text(served: RunningStack) -> float:
    return post(served, "/txt/embed", f"shade {next(COLOURS)}")


@pytest.fixture(params=["stack", "pipelined_stack"])
def served(request) -> RunningStack:
    served = request.getfixturevalue(request.param)
    text(served)
    return served


def model_process(served: RunningStack) -> psutil.Process:
    children = psutil.Process(served.stack.triton.popen.pid).children(recursive=True)
    return next(child for child in children if "python_backend_stub" in child.name())


class Peak:
    """The most memory that the model process has had since this was made, in bytes."""

    def __init__(self, served: RunningStack) -> None:
        self._process = model_process(served)
        with open(f"/proc/{self._process.pid}/clear_refs", "w") as file:
            file.write("5")  # the peak is what there is now (proc(5))

    def __call__(self) -> int:
        with open(f"/proc/{self._process.pid}/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def test_texts_do_not_wait_for_large_images_and_memory_is_that_of_one(served):
    post(served, "/img/embed", bombs(1)[0])
    peak = Peak(served)
    post(served, "/img/embed", bombs(1)[0])
    peak_of_one, peak = peak(), Peak(served)
    waited = []
    with ThreadPoolExecutor(1) as pool:
        listed = pool.submit(post, served, "/img/embed", bombs(4))
        while not listed.done():
            waited.append(text(served))
            time.sleep(0.05)
        took = listed.result()
    assert len(waited) >= 4  # one while each is decoded
    assert max(waited) <= max(1.0, took / 2)  # not for four of them
    assert peak() <= 1.5 * peak_of_one  # two at once: 1.65


@pytest.mark.parametrize("how", ["hangs up", "x-timeout"])
def test_nothing_is_decoded_for_who_does_not_wait(stack, how):
    alone, before = post(stack, "/img/embed", bombs(1)[0]), settled(stack, "decoded_pixels")
    url, body, seconds = f"{stack.adapter_url}/img/embed", {"input": bombs(16)}, 1.5 * alone
    if how == "hangs up":
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=body, timeout=seconds)
    else:
        refused(httpx.post(url, json=body, headers={"x-timeout": f"{seconds}"}, timeout=LIMIT_SECONDS), 504)
    assert text(stack) <= max(1.0, 2 * alone) * SLOWER  # not for sixteen of them
    post(stack, "/img/embed", bombs(1)[0])  # behind all of them
    assert settled(stack, "decoded_pixels") - before <= 12 * EDGE**2  # with this one, of 17: it may be faster by now


def test_texts_sent_to_triton_itself_do_not_wait_either(served):
    """More large images than the model takes in at once, and a text behind them."""
    answered, done = [], threading.Semaphore(0)

    def answer(name: str):
        def note(result, error):
            answered.append((name, error))
            done.release()

        return note

    client = tritonclient.grpc.InferenceServerClient(served.triton_grpc)
    for bomb in bombs(150, 1200):
        client.async_infer("qwen3_vl_embed", inputs(image=base64.b64decode(bomb)), answer("image"))
    client.async_infer("qwen3_vl_embed", inputs(text=b"red"), answer("text"))
    for _ in range(151):
        assert done.acquire(timeout=LIMIT_SECONDS)
    client.close()
    assert all(error is None for _, error in answered)
    assert answered.index(("text", None)) < 100


def inputs(**contents: bytes) -> list[tritonclient.grpc.InferInput]:
    made = [tritonclient.grpc.InferInput(name, [1, 1], "BYTES") for name in ("text", "image", "options")]
    for each in made:
        each.set_data_from_numpy(np.array([[contents.get(each.name(), b"")]], dtype=object))
    return made


def test_large_images_in_a_batch_with_small_ones_get_their_own_vectors(served):
    large = base64.b64encode(encoded(solid("RGB", (255, 0, 0), (800, 800)))).decode()
    small = base64.b64encode(encoded(solid("RGB", (0, 0, 255), (100, 100)))).decode()
    url = f"{served.adapter_url}/img/embed"
    answers = {n: httpx.post(url, json={"input": [large, small] * n}).json()["embedding"] for n in (1, 16)}
    assert np.allclose(answers[16], answers[1] * 16, atol=1e-4)
    error = refused(httpx.post(url, json={"input": [large, large[:200]]}), 400)
    assert error["param"] == "input[1]"


async def test_pixels_that_cannot_be_served_in_time_are_refused_while_texts_are_taken_in(stack):
    async with line_to(stack.triton_grpc) as line, adapter(line.url, max_pending_pixels=10**8) as http:
        line.hold()
        first = asyncio.create_task(http.post("/img/embed", json={"input": bombs(4, 2500)}))
        await eventually(lambda: http.app.state.admission.pending == 4)
        response = await http.post("/img/embed", json={"input": bombs(20, 2500)})
        assert "pixels" in refused(response, 429)["message"]
        assert response.headers["retry-after"] == "1"
        line.release()
        text = await http.post("/txt/embed", json={"input": f"shade {next(COLOURS)}"})
        assert (text.status_code, (await first).status_code) == (200, 200)
