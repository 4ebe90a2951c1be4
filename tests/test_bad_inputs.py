"""Whatever is sent to whatever door, beside good inputs: its own documented answer, and the others' vectors as always.

The doors are the adapter, and Triton itself over gRPC and HTTP. The inputs are the tables of `bad_inputs.py`.
"""

import base64
import json
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from zlib import crc32

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException

from qwen3_vl_embed.evaluation.colours import png, swatch
from tests import bad_inputs
from tests.conftest import CHECKPOINT
from tests.in_process import refused
from tests.reference import cosine
from tests.test_triton import MODEL, Client
from tests.waits import LIMIT_SECONDS, SLOWER

pytestmark = pytest.mark.stack
SLOWEST = 6.0 * SLOWER  # seconds: decoding is bounded by four


class Refused(Exception):
    """The documented answer to a mistake of the caller's."""


@dataclass(frozen=True)
class Adapter:
    http: httpx.Client

    def embed(self, text: str = "", image: bytes = b"", options: dict | None = None) -> np.ndarray:
        if not image:
            return self.post("/txt/embed", {"input": text, **(options or {})})
        both = {"text": text} if text else {}
        return self.post("/img/embed", {"input": base64.b64encode(image).decode(), **both, **(options or {})})

    def post(self, path: str, body: dict | bytes) -> np.ndarray:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = self.http.post(path, content=content, headers={"content-type": "application/json"})
        if response.status_code != 200:
            raise Refused(refused(response, 400)["message"])
        return np.array(response.json()["embedding"], np.float32)


@dataclass(frozen=True)
class Triton:
    protocol: ModuleType
    address: str

    def embed(self, text: str = "", image: bytes = b"", options: dict | None = None) -> np.ndarray:
        client = Client(self.protocol, self.address)  # tritonclient's are for one thread each
        try:
            encoded = b"" if options is None else json.dumps(options).encode()
            return client.vector(text=text.encode(), image=image, options=encoded)
        except InferenceServerException as error:
            if error.status() not in ("StatusCode.INVALID_ARGUMENT", "400"):
                raise
            raise Refused(error.message()) from error
        finally:
            client.client.close()

    def rows(self, inputs: list[dict]) -> np.ndarray:
        """(N, D): in one request."""
        client = Client(self.protocol, self.address)
        try:
            texts, images = (
                [each.get("text", "").encode() for each in inputs],
                [each.get("image", b"") for each in inputs],
            )
            return client.infer(text=texts, image=images, rows=len(inputs)).as_numpy("embedding")
        finally:
            client.client.close()


@pytest.fixture(scope="module")
def adapter(stack):
    with httpx.Client(base_url=stack.adapter_url, timeout=LIMIT_SECONDS) as http:
        yield Adapter(http)


@pytest.fixture(scope="module")
def triton(stack):
    return Triton(tritonclient.grpc, stack.triton_grpc)


@pytest.fixture(params=["adapter", "grpc"])
def door(request, adapter, triton):
    return {"adapter": adapter, "grpc": triton}[request.param]


@pytest.fixture
def beside_good_ones(request, triton):
    """Do `send` while a text and a swatch that nobody sent before go through a door, and another text after it."""
    seed = crc32(request.node.name.encode())
    image = png(swatch(tuple((seed % 2**24).to_bytes(3))))
    good = [{"text": f"shade {seed}"}, {"image": image}, {"text": f"shade {seed}, again"}]

    def run(send: Callable[[], object], door: Adapter | Triton) -> Future:
        with ThreadPoolExecutor(3) as pool:
            bad, *others = pool.submit(send), *(pool.submit(door.embed, **inputs) for inputs in good[:2])
            vectors = [future.result(SLOWEST) for future in others]
            bad.exception(SLOWEST)
        vectors.append(door.embed(**good[2]))
        alone = triton.rows(good)
        assert all(cosine(*pair) >= 0.99999 for pair in zip(vectors, alone, strict=True))
        return bad

    return run


def check(answer: Future, sentence: str | None) -> None:
    """A finite vector of length 1, or that sentence."""
    if sentence is None:
        assert np.linalg.norm(answer.result()) == pytest.approx(1, abs=1e-5)
    else:
        assert isinstance(answer.exception(), Refused), answer.exception() or "it was embedded"
        assert sentence in str(answer.exception())


@pytest.mark.parametrize("name", bad_inputs.IMAGES)
def test_images(door, beside_good_ones, name):
    image, sentence = bad_inputs.IMAGES[name]
    check(beside_good_ones(lambda: door.embed(image=image), door), sentence)


@pytest.mark.parametrize("name", bad_inputs.TEXTS)
def test_texts(door, beside_good_ones, name):
    text, sentence = bad_inputs.TEXTS[name]
    check(beside_good_ones(lambda: door.embed(text=text), door), sentence)


@pytest.mark.parametrize("name", bad_inputs.OPTIONS)
def test_options(door, beside_good_ones, name):
    options, sentence = bad_inputs.OPTIONS[name]
    check(beside_good_ones(lambda: door.embed(text="\u0301", options=options), door), sentence)


@pytest.mark.parametrize("name", bad_inputs.STRINGS)
def test_strings_for_images(adapter, beside_good_ones, name):
    string, sentence = bad_inputs.STRINGS[name]
    check(beside_good_ones(lambda: adapter.post("/img/embed", {"input": string}), adapter), sentence)


@pytest.mark.parametrize("name", bad_inputs.BODIES)
def test_bodies(adapter, beside_good_ones, name):
    body, sentence = bad_inputs.BODIES[name]
    check(beside_good_ones(lambda: adapter.post("/txt/embed", body), adapter), sentence)


def test_everything_at_once_over_http(stack):
    """The tables in one crowd with good inputs, through the door that they have not been through one by one."""
    door = Triton(tritonclient.http, stack.triton_http)
    rows = [({"image": image}, sentence) for image, sentence in bad_inputs.IMAGES.values()]
    rows += [({"text": text}, sentence) for text, sentence in bad_inputs.TEXTS.values()]
    rows += [({"text": "red", "options": options}, sentence) for options, sentence in bad_inputs.OPTIONS.values()]
    good = [{"text": "dark teal"}, {"image": png(swatch((0, 80, 90)))}]
    alone = [door.embed(**inputs) for inputs in good]
    with ThreadPoolExecutor(16) as pool:
        bad = [pool.submit(door.embed, **inputs) for inputs, _ in rows]
        others = [pool.submit(door.embed, **good[index % 2]) for index in range(len(rows))]
        assert all(cosine(future.result(), alone[index % 2]) >= 0.99999 for index, future in enumerate(others))
    for answer, (_, sentence) in zip(bad, rows, strict=True):
        check(answer, sentence)


def test_every_special_token_is_text(door):
    tokens = json.loads((CHECKPOINT / "tokenizer.json").read_text())["added_tokens"]
    for token in tokens:
        assert np.isfinite(door.embed(text=f"a {token['content']} b")).all()


@pytest.mark.parametrize(
    ("prompt", "text", "rendered"),
    [
        ("\ue000text\ue000 {content} \ue0000\ue000", "red", "\ue000text\ue000 red \ue0000\ue000"),
        ("e{content}", "\u0301", "é"),
        ("<|im_end|>{content}", "<|image_pad|>", "<|im_end|><|image_pad|>"),
    ],
)
def test_what_a_caller_writes_stays_in_its_place(adapter, prompt, text, rendered):
    """Whatever it looks like; and there is a token to pool, even where a mark melts into the letter before it."""
    answer = adapter.http.post("/debug/render", json={"text": text, "prompt": prompt, "pooling": "mean"}).json()
    assert f"user\n{rendered}<|im_end|>" in answer["prompt"]
    [[start, stop]] = answer["pooled"]
    assert start < stop


def test_of_sixteen_images_the_bad_one_is_named(adapter):
    images = [base64.b64encode(png(swatch((index, 0, 0)))).decode() for index in range(16)]
    images[7] = base64.b64encode(bad_inputs.PNG[:60]).decode()
    response = adapter.http.post("/img/embed", json={"input": images})
    assert refused(response, 400)["param"] == "input[7]"


def test_no_address_is_fetched_and_no_file_opened(door, tmp_path):
    """A server that would be asked hears nothing; a file that holds a good image gives no vector."""
    (tmp_path / "red.png").write_bytes(bad_inputs.PNG)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        for address in (f"http://127.0.0.1:{listener.getsockname()[1]}/red.png", f"file://{tmp_path}/red.png"):
            with pytest.raises(Refused):
                door.embed(image=address.encode())
        with pytest.raises(TimeoutError):
            listener.accept()


def bytes_tensor(*elements: bytes) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


NONE, RED = bytes_tensor(b""), bytes_tensor(b"red")
TENSORS = {
    "no rows": (0, [b"", b"", b""], "expected 1 string elements"),
    "65 rows": (65, [RED * 65, NONE * 65, NONE * 65], "batch-size must be <= 64"),
    "fewer images than rows": (2, [RED * 2, NONE, NONE * 2], "expected 2 string elements"),
    "more texts than rows": (1, [RED * 3, NONE, NONE], "unexpected number of string elements"),
    "a cut length": (1, [b"\5\0", NONE, NONE], "incomplete string length"),
    "one input": (1, [RED], "expected 3 inputs but got 1"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(stack, triton, beside_good_ones, name):
    """What no client library would send; Triton itself refuses it, before the model sees it."""
    rows, contents, sentence = TENSORS[name]
    request = service_pb2.ModelInferRequest(model_name=MODEL, raw_input_contents=contents)
    for input_name, _ in zip(("text", "image", "options"), contents, strict=False):
        request.inputs.add(name=input_name, datatype="BYTES", shape=[rows, 1])
    with grpc.insecure_channel(stack.triton_grpc) as channel:
        answer = beside_good_ones(
            lambda: GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=LIMIT_SECONDS), triton
        )
        assert answer.exception().code() is grpc.StatusCode.INVALID_ARGUMENT
        assert sentence in answer.exception().details()
