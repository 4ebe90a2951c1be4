"""What an image costs, read off its header by the model and by the adapter, and how many pixels there are at once."""

import asyncio
import io
import threading
import time
from base64 import b64encode

import numpy as np
import pytest
from PIL import Image

from client import items
from client.http import images
from client.http.schemas import ImageRequest, TextRequest
from client.triton.dispatcher import Pixels
from embedder import EmbedInput, Options
from embedder.config import EmbedderConfig
from embedder.prepare import pixels as model
from tests.bad_inputs import (
    EXIF,
    IMAGES,
    PNG,
    SMALL_BOMB,
    app1,
    chunk,
    flat_webp,
    jpeg,
    png,
    run_length_bmp,
    scans,
    tiff,
)
from tests.waits import LIMIT_SECONDS, SLOWER

MOST = EmbedderConfig(checkpoint="x").max_image_pixels


def encoded(format: str, size: tuple[int, int], mode: str = "RGB", **how) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, format, **how)
    return file.getvalue()


SIZED = [
    encoded("PNG", (700, 300)),
    encoded("PNG", (700, 300), "I;16"),
    encoded("JPEG", (700, 300)),
    encoded("JPEG", (700, 300), progressive=True, icc_profile=bytes(100_000)),
    encoded("WEBP", (700, 300)),
    flat_webp(700, 300),
    encoded("GIF", (700, 300)),
    encoded("BMP", (700, 300), "1"),
    encoded("TIFF", (700, 300), "1"),
]


@pytest.mark.parametrize("content", SIZED)
def test_the_header_says_how_many_pixels(content):
    assert images.pixels(content) == 210_000


@pytest.mark.parametrize("name", IMAGES)
def test_adapter_and_model_count_the_same(name):
    content, _ = IMAGES[name]
    started = time.thread_time()
    assert images.pixels(content) == model.pixels(content, MOST)
    assert time.thread_time() - started < 0.5 * SLOWER  # seconds of CPU; decoding some of them takes four


def test_adapter_and_model_mean_the_same_by_large():
    assert items.SMALL_PIXELS == model.SMALL
    assert (items.LONG_TEXT, items.PIXELS_A_BYTE) == (model.LONG_TEXT, model.PIXELS_A_BYTE)
    assert images.MOST_PIXELS == MOST
    assert images.FORMATS == model.FORMATS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        PNG[:20],
        jpeg(b"\xff" * 2**21),  # padding, which Pillow reads byte by byte
        jpeg(app1(EXIF.tobytes()), count=50_000),  # joining them takes time by the square
        png((40, 40), *[chunk(b"zTXt", b"a\0\0" + SMALL_BOMB)] * 60),
        scans(40),
        run_length_bmp(10_000),
        flat_webp(16_000, 16_000),
        png((2**31 - 1, 2**31 - 1), pixels=b""),
    ],
)
def test_what_the_header_does_not_say_is_the_most(content):
    assert images.pixels(content) == MOST


def test_what_costs_more_than_its_pixels():
    assert images.pixels(tiff({322: 4096, 323: 4096})) == 4096 * 4096
    assert images.pixels(PNG + bytes(10**6)) == 10**6 + len(PNG)
    enlarged = EmbedInput(image=PNG, options=Options(min_pixels=10**6))
    assert model.cost(enlarged, MOST) == 10**6
    (item,) = ImageRequest.parse({"input": b64encode(PNG).decode(), "min_pixels": 10**6}, 1).items()
    assert item.pixels == 10**6
    assert model.cost(EmbedInput(text="red"), MOST) == 0


@pytest.mark.parametrize("characters", [1, 2**14, 2**14 + 1, 2**18, 2**22])
def test_adapter_and_model_count_a_text_the_same(characters):
    text = "\U0001f3a8" * characters
    (item,) = TextRequest.parse({"input": text}, 1).items()
    assert item.pixels == model.cost(EmbedInput(text=text), MOST)
    assert bool(item.large) == (4 * characters > 2**16) == (item.pixels > model.SMALL)
    assert item.pixels <= MOST


def test_a_budget_is_never_exceeded_and_starves_nobody():
    budget, lock, held, most, order = model.Budget(100), threading.Lock(), 0, 0, []

    def take(pixels: int) -> None:
        nonlocal held, most
        with budget.taken(pixels):
            with lock:
                held += min(pixels, 100)
                most = max(most, held)
                order.append(pixels)
            time.sleep(0.002)
            with lock:
                held -= min(pixels, 100)

    threads = [threading.Thread(target=take, args=(int(pixels),)) for pixels in np.tile([10, 60, 30, 500], 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_SECONDS)
    assert most == 100
    assert len(order) == 80
    assert held == 0


async def test_large_images_wait_for_room_and_requests_take_turns():
    pixels, began = Pixels(100), []

    async def compute(name: str, cost: int, turn: asyncio.Lock) -> None:
        async with pixels.taken(cost, turn):
            began.append(name)
            await asyncio.sleep(0.01)

    listed, single = asyncio.Lock(), asyncio.Lock()
    tasks = [asyncio.create_task(compute(f"list {n}", 60, listed)) for n in range(5)]
    tasks.append(asyncio.create_task(compute("single", 500, single)))
    await asyncio.sleep(0)
    tasks[3].cancel()  # while it waits
    await asyncio.gather(*tasks, return_exceptions=True)
    assert began.index("single") <= 2  # behind the one that runs and the one that waited first
    assert sorted(began) == ["list 0", "list 1", "list 2", "list 4", "single"]
    async with asyncio.timeout(LIMIT_SECONDS), pixels.taken(100, listed):  # all is free again
        pass
