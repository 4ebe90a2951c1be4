"""The client against the real stack; then against servers that are busy, broken, foreign or absent.

These give answers that a working adapter cannot be made to give on demand. More of its own: test_cli.py.
"""

import asyncio
import io
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from embedder.prepare import images
from qwen3_vl_embed import AdapterError, AsyncClient, Client, Embedded, Item, ItemError, client, pictures, protocol
from qwen3_vl_embed.contract import Endpoints
from tests import viewer_files
from tests.in_process import listening, proxied

SIDE = np.arange(0, 256, 4, dtype=np.uint8)
PIXELS = np.stack(np.broadcast_arrays(SIDE[:, None], SIDE[None], np.uint8(90)), axis=-1)  # (64, 64, 3)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_an_image_is_a_path_bytes_pixels_or_a_list_of_them(stack, tmp_path):
    path = tmp_path / "gradient.png"
    path.write_bytes(png(PIXELS))
    forms = [path, str(path), path.read_bytes(), Image.fromarray(PIXELS), PIXELS, PIXELS[:, ::-1][:, ::-1]]
    with Client(stack.adapter_url) as http:
        one = http.embed_image(path)
        assert (one.dtype, one.shape) == (np.float32, (http.model()["dimension"],))
        for form in forms:
            np.testing.assert_array_equal(http.embed_image(form), one)
        np.testing.assert_allclose(http.embed_image(forms), np.stack([one] * len(forms)), atol=1e-6)
        np.testing.assert_allclose(http.embed_image(np.stack([PIXELS, PIXELS])), np.stack([one, one]), atol=1e-6)
        assert http.embed_image(PIXELS[..., 0]) @ one < 0.999  # grey


KEPT = [
    *("iCCP", "iCCP, linear", "iCCP of alpha", "iCCP and gAMA", "iCCP of grey", "gAMA 100000", "gAMA and cHRM"),
    *("sRGB and gAMA", "grey of 16 bits", "grey with a key", "RGB of 16 bits", "RGB with a key", "grey and alpha"),
    *("palette", "palette with alpha", "eXIf 6", "animation", "plain", "grey", "CMYK", "profile", "EXIF 3", "EXIF 6"),
]
FILES = viewer_files.PNG_COLOURS | viewer_files.PNG_PICTURES | viewer_files.JPEGS


@pytest.mark.parametrize("name", KEPT)
def test_a_pillow_image_has_the_colours_of_its_file(name):
    """Profile, gamma, alpha, palette, depth and orientation. The JPEG decoders differ by some levels."""
    with Image.open(io.BytesIO(FILES[name])) as image:
        sent = pictures.encoded(image)
    ours = [np.asarray(images.decode(data, 2**24, 10**6)).astype(int) for data in (FILES[name], sent)]
    assert ours[0].shape == ours[1].shape
    assert np.abs(ours[0] - ours[1]).max() <= 6


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (PIXELS / 255, "an array of float64 is not sent: make it uint8"),
        (PIXELS.transpose(2, 0, 1), r"shape \(3, 64, 64\) is no image"),
        (PIXELS[:0], "is no image"),
        (Image.new("F", (8, 8)), "the mode F"),
        (Image.new("I", (8, 8)), "the mode I"),
        (Path("/nowhere.png"), "cannot be read"),
        (b"no image", "image"),
        (png(PIXELS)[:120], "image"),
    ],
)
def test_a_bad_image_is_named_and_nothing_is_guessed(stack, image, sentence):
    with Client(stack.adapter_url) as http:
        with pytest.raises(AdapterError, match=sentence):
            http.embed_image(image)
        with pytest.raises(ItemError, match=sentence) as caught:
            http.embed_image([PIXELS, PIXELS, image])
    assert caught.value.index == 2
    assert str(caught.value).startswith(str(image) if isinstance(image, Path) else "image 2: ")


def test_bad_items_fail_alone(stack):
    given = [Item.text("red"), Item.text(""), Item.image(Path("/nowhere.png")), Item.text("blue")]
    with Client(stack.adapter_url) as http:
        came = [each for results in http.embed_each(given, max_pixels=4096) for each in results]
        words = http.embed_text(["red", "blue"])
    assert [type(each) for each in came] == [Embedded, ItemError, ItemError, Embedded]
    np.testing.assert_allclose([came[0].vector, came[3].vector], words, atol=1e-6)


def test_what_is_no_text_and_no_image_is_refused(stack):
    with Client(stack.adapter_url) as http:
        for wrong in (b"red", [Path("red.png")], 7):
            with pytest.raises(TypeError):
                http.embed_text(wrong)
        for wrong in (7, [7], None):
            with pytest.raises(TypeError):
                http.embed_image(wrong)
        with pytest.raises(AdapterError, match="nothing to embed"):
            http.embed_text([])
        with pytest.raises(AdapterError, match="pooling"):
            http.embed_text(["red"], pooling="none of them")
        with pytest.raises(AdapterError, match="no option"):
            http.embed_text("red", input="blue")  # the vector of blue


async def test_both_clients_say_the_same(stack):
    words, told = [f"word {number}" for number in range(50)], []
    with Client(stack.adapter_url, batch_size=16) as http:
        one, many = (
            http.embed_text("red", dimensions=16),
            http.embed_text(iter(words), progress=lambda *so: told.append(so)),
        )
        image = http.embed_image([PIXELS])
    assert (one.shape, len(many)) == ((16,), 50)
    assert told == [(16, None), (32, None), (48, None), (50, None)]
    told.clear()
    async with AsyncClient(stack.adapter_url, batch_size=16) as http:
        assert (await http.model())["id"]
        np.testing.assert_array_equal(await http.embed_text("red", dimensions=16), one)
        np.testing.assert_allclose(await http.embed_text(words, progress=lambda *so: told.append(so)), many, atol=1e-6)
        np.testing.assert_allclose(await http.embed_image([PIXELS]), image, atol=1e-6)
        np.testing.assert_allclose(await asyncio.gather(*map(http.embed_text, words)), many, atol=1e-6)
        with pytest.raises(ItemError) as caught:
            await http.embed_text([*words, ""])
        came = [each async for results in http.embed_each(map(Item.text, ["red", ""])) for each in results]
    assert caught.value.index == 50
    assert told == [(16, 50), (32, 50), (48, 50), (50, 50)]
    assert [type(each) for each in came] == [Embedded, ItemError]


async def test_async_waits_for_a_server_that_is_busy_or_lost(serve):
    """Without holding up its loop."""
    url = serve(GOOD, BUSY, (LOST, {}, b""), GOOD).url
    async with AsyncClient(url, endpoints=Endpoints()) as http:
        await http.embed_text("red")
        beats = asyncio.create_task(asyncio.sleep(0.2))
        waiting = asyncio.create_task(http.embed_text("red"))
        await beats
        assert not waiting.done()
        np.testing.assert_array_equal(await waiting, np.float32([0.6, 0.8]))


Answer = tuple[int, dict[str, str], bytes]
BUSY = (429, {"Retry-After": "1"}, b'{"error": {"message": "429: too busy.", "param": null}}')
GOOD: Answer = (200, {}, b'{"embedding": [0.6, 0.8]}')
LOST = 0  # the connection ends without an answer


@pytest.fixture
def serve() -> Iterator[Callable[..., Client]]:
    """Starts a server that gives these answers, one after the other, and is asked nothing else."""
    servers: list[HTTPServer] = []
    clients = ExitStack()

    def start(*answers: Answer, **settings: Any) -> Client:
        remaining = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, body = remaining.pop(0)
                if status == LOST:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return clients.enter_context(
            Client(f"http://127.0.0.1:{servers[-1].server_port}/", endpoints=Endpoints(), **settings)
        )

    with clients:
        yield start
    for server in servers:
        server.shutdown()
        server.server_close()


async def test_the_key_of_a_server_that_wants_one(monkeypatch):
    """The real adapter: without its key a sentence says where to put it, with it /info answers."""
    async with listening(api_key="s3cret-Key") as http:

        def info() -> dict[str, Any]:
            with Client(str(http.base_url)) as client:
                return client.info()

        with pytest.raises(AdapterError, match="put it into the environment variable QWEN3_VL_EMBED_API_KEY") as told:
            await asyncio.to_thread(info)
        assert told.value.status == 401
        monkeypatch.setenv("QWEN3_VL_EMBED_API_KEY", "s3cret-Key")
        assert "adapter" in await asyncio.to_thread(info)
        monkeypatch.setenv("QWEN3_VL_EMBED_API_KEY", "another")
        with pytest.raises(AdapterError, match="refuses the key in"):
            await asyncio.to_thread(info)
        async with AsyncClient(str(http.base_url), api_key="s3cret-Key") as given:
            assert "adapter" in await given.info()
        async with AsyncClient(str(http.base_url), api_key="a third") as given:
            with pytest.raises(AdapterError, match="refuses the key that it was given"):
                await given.info()


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that the client would have waited; its clock goes on by them."""
    waited: list[float] = []

    class Hurried(Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0)
            return False

    monkeypatch.setattr(client, "Event", Hurried)
    monkeypatch.setattr(protocol, "monotonic", lambda: 1000 + sum(waited))
    return waited


def test_a_busy_adapter_is_asked_again(serve, waits):
    with serve(BUSY, BUSY, BUSY, GOOD) as client:
        np.testing.assert_array_equal(client.embed_text("red"), np.float32([0.6, 0.8]))
    assert waits == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("status", [502, 503, 504, LOST])
def test_a_restart_is_outlasted(serve, waits, status):
    """With one word about it, however often it is asked; a gateway may answer in the adapter's place."""
    told: list[str] = []
    down: list[Answer] = [(status, {}, b"<html>")] * 8
    with serve(GOOD, *down, GOOD, notify=told.append) as client:
        client.embed_text("red")
        np.testing.assert_array_equal(client.embed_text("red"), np.float32([0.6, 0.8]))
    assert waits == [0.5, 1, 2, 4, 5, 5, 5, 5]
    assert len(told) == 1
    assert told[0].endswith("Asking again for up to 120 s.")


@pytest.mark.parametrize(("seconds", "status"), [(120, 429), (120, 503), (7, 504), (0, LOST)])
def test_an_adapter_that_stays_away_is_given_up(serve, waits, seconds, status):
    with serve(GOOD, *[(status, {}, b"")] * 40, retry_for_s=seconds) as client:
        client.embed_text("red")
        with pytest.raises(AdapterError) as caught:
            client.embed_text("red")
    assert caught.value.status == (status or None)
    assert sum(waits) == seconds


@pytest.mark.parametrize(("after", "seconds"), [("45", 45), ("Thu, 26 Nov 2026 06:02:36 +0000", 0.5), ("soon", 0.5)])
def test_retry_after_is_seconds_or_a_date(serve, waits, after, seconds):
    with serve((429, {"Retry-After": after}, b""), GOOD) as client:
        client.embed_text("red")
    assert waits == [seconds]


def test_another_recipe_in_the_middle_is_refused(serve):
    """Vectors of two recipes in one file would be plausible, and wrong."""
    answers = [(200, {"x-recipe": recipe}, GOOD[2]) for recipe in ("a", "a", "b")]
    with serve(*answers) as client:
        client.embed_text("red")
        client.embed_text("red")
        with pytest.raises(AdapterError, match="another recipe"):
            client.embed_text("red")


async def test_another_model_behind_the_same_adapter_is_refused(stack, other_stack):
    """Triton came back with other weights and the same recipe: no request failed, and none but `x-model` tells."""
    async with (
        proxied(stack.triton_grpc) as (proxy, address),
        listening(address, probe_seconds=3600) as http,
        AsyncClient(str(http.base_url)) as client,
    ):
        names = map(Item.text, [f"colour {number}" for number in range(20)])
        results = aiter(client.embed_each(names, batch_size=1, in_flight=1, pooling="last"))
        await anext(results)
        proxy.target = other_stack.triton_grpc
        with pytest.raises(AdapterError, match="serves another model than before"):
            await anext(results)
        with pytest.raises(AdapterError, match="serves another model than before"):
            await client.embed_text("red")


def test_a_vector_of_nobody_knows_which_model_is_refused(serve):
    with serve((200, {"x-model": "a"}, GOOD[2]), GOOD) as client:
        client.embed_text("red")
        with pytest.raises(AdapterError, match="does not say which model"):
            client.embed_text("red")


PROXIES = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense://x", "http://x:port"])
def test_this_machine_is_never_asked_through_a_proxy(serve, monkeypatch, proxy):
    for name in PROXIES[:4]:
        monkeypatch.setenv(name, proxy)
    with serve(GOOD) as client:
        assert client.embed_text("red").shape == (2,)


@pytest.mark.parametrize(
    ("name", "proxy", "sentence"),
    [
        ("HTTP_PROXY", "http://127.0.0.1:9", "through the environment's proxy; NO_PROXY=gpu-box.invalid"),
        ("ALL_PROXY", "socks5://127.0.0.1:9", r"SOCKS proxy, which needs a package.*NO_PROXY=gpu-box.invalid"),
        ("ALL_PROXY", "nonsense://x", "proxy that the environment names cannot be used"),
        ("ALL_PROXY", "http://127.0.0.1:port", "proxy that the environment names cannot be used"),
    ],
)
def test_a_proxy_that_does_not_work_is_a_sentence(monkeypatch, name, proxy, sentence):
    monkeypatch.setenv(name, proxy)
    with pytest.raises(AdapterError, match=sentence), Client("http://gpu-box.invalid:8001") as client:
        client.embed_text("red")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"<html>", "is it the adapter"),
        (b"[]", "is it the adapter"),
        (b'{"data": []}', "without a list of numbers"),
        (b'{"embedding": ["a"]}', "without a list of numbers"),
        (b'{"embedding": [[1, 0], [1]]}', "without a list of numbers"),
        (b'{"embedding": [[1, 0]]}', "not what was asked"),
        (b'{"embedding": [1, 0]}', "not what was asked"),
    ],
)
def test_an_answer_of_another_shape_is_no_vector(serve, body, sentence):
    with serve((200, {}, body)) as client, pytest.raises(AdapterError, match=sentence):
        client.embed_text(["red", "blue"])


def refusal(param: str) -> Answer:
    return 400, {}, orjson.dumps({"error": {"message": "It is no image.", "type": "", "param": param, "code": ""}})


def test_errors_keep_the_adapters_sentence(serve):
    with serve(refusal("input")) as client, pytest.raises(AdapterError, match=r"^It is no image\.$") as caught:
        client.embed_image(b"x")
    assert caught.value.status == 400


def test_the_item_at_fault_is_named_by_its_place_in_the_whole_list(stack):
    """It is the last of the second request, which the server refuses; each item of that is then sent alone."""
    with Client(stack.adapter_url, batch_size=2) as http, pytest.raises(ItemError, match=r"^image 3: ") as caught:
        http.embed_image([PIXELS, PIXELS, PIXELS, png(PIXELS)[:120]])
    assert (caught.value.status, caught.value.index) == (400, 3)


def test_an_error_of_something_else_says_so(serve):
    with serve((502, {}, b"Bad Gateway")) as client, pytest.raises(AdapterError, match="502 Bad Gateway"):
        client.embed_text("red")


def test_nothing_there():
    with Client("http://127.0.0.1:9") as client, pytest.raises(AdapterError, match="Nothing answers"):
        client.embed_text("red")


@pytest.mark.parametrize("url", ["localhost:8001", "ftp://localhost", "http://localhost:port"])
def test_a_url_that_is_none(url):
    with pytest.raises(AdapterError, match="Write it like http://"), Client(url) as client:
        client.embed_text("red")
