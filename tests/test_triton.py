"""Triton itself, over gRPC and HTTP: the wire contract, dynamic batching of mixed requests, errors that stay alone."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from qwen3_vl_embed.evaluation.colours import png, swatch
from tests.reference import cosine

pytestmark = pytest.mark.stack
MODEL = "qwen3_vl_embed"
RED = png(swatch((255, 0, 0)))


class Client:
    """The three inputs through one of Triton's protocols."""

    def __init__(self, protocol, address: str) -> None:
        self.protocol, self.address = protocol, address
        self.client = protocol.InferenceServerClient(address)

    def infer(self, text=b"", image=b"", options=b"", rows=1, names=("text", "image", "options"), **how):
        inputs = []
        for name, content in zip(names, (text, image, options), strict=False):
            column = content if isinstance(content, list) else [content] * rows
            inputs.append(self.protocol.InferInput(name, [rows, 1], "BYTES"))
            inputs[-1].set_data_from_numpy(np.array(column, dtype=object).reshape(rows, 1))
        return self.client.infer(MODEL, inputs, **how)

    def vector(self, **inputs) -> np.ndarray:
        return self.infer(**inputs).as_numpy("embedding")[0]

    def refused(self, **inputs) -> str:
        with pytest.raises(InferenceServerException) as raised:
            self.infer(**inputs)
        assert raised.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
        return raised.value.message()


@pytest.fixture(params=["grpc", "http", "pipelined"])
def served(request):
    return request.getfixturevalue("pipelined_stack" if request.param == "pipelined" else "stack")


@pytest.fixture
def client(served, request):
    over_http = request.node.callspec.params["served"] == "http"
    client = (
        Client(tritonclient.http, served.triton_http) if over_http else Client(tritonclient.grpc, served.triton_grpc)
    )
    yield client
    client.client.close()


def test_a_text_and_an_image(client):
    for inputs in ({"text": b"red"}, {"image": RED}):
        result = client.infer(**inputs)
        embedding, tokens, info = (result.as_numpy(name) for name in ("embedding", "tokens", "info"))
        assert (embedding.dtype, embedding.shape) == (np.float32, (1, 128))
        assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
        assert (tokens.dtype, tokens.shape) == (np.int32, (1, 1))
        assert tokens[0, 0] > 10
        described = json.loads(info[0, 0])
        assert described["model"]["dimension"] == 128
        assert described["preprocess_ms"] > 0
        assert described["forward_ms"] > 0


def test_rows_of_one_request(client):
    rows = client.infer(text=[b"red", b"", b"blue"], image=[b"", RED, b""], rows=3).as_numpy("embedding")
    singles = [client.vector(text=b"red"), client.vector(image=RED), client.vector(text=b"blue")]
    assert all(cosine(row, single) >= 0.99999 for row, single in zip(rows, singles, strict=True))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({}, "the text is blank"),
        ({"text": b"\xff\xfe"}, "not valid UTF-8"),
        ({"image": b"no image"}, "not an image this server reads"),
        ({"image": RED[:100]}, "truncated or damaged"),
        ({"image": b"\0\0\0\x20ftypisom" + bytes(64)}, "single images are served"),
        ({"text": b"red", "options": b"{"}, "options: Invalid JSON"),
        ({"text": b"red", "options": b'{"colour": 1}'}, "'colour' is not an option"),
        ({"text": b"red", "options": b'{"dimensions": 129}'}, "options.dimensions: at most 128"),
        ({"text": [b"red", b""], "rows": 2}, "row 1: the text is blank"),
        ({"text": [b"a", b"b"], "options": [b'{"dimensions": 8}', b""], "rows": 2}, "the same in all rows"),
    ],
)
def test_bad_rows_are_invalid_arguments_with_a_sentence(client, inputs, sentence):
    assert sentence in client.refused(**inputs)
    assert client.vector(text=b"red").shape == (128,)


def test_texts_images_and_bad_rows_share_batches_and_harm_nobody(client):
    """Concurrent mixed requests are computed together, and each gets its own answer."""
    expected = {"text": client.vector(text=b"dark teal"), "image": client.vector(image=RED)}
    kinds = [("text", "image", "bad")[i % 3] for i in range(192)]
    inputs = {"text": {"text": b"dark teal"}, "image": {"image": RED}, "bad": {"image": RED[:100]}}
    with ThreadPoolExecutor(48) as pool:
        answers = list(pool.map(lambda kind: outcome(client, inputs[kind]), kinds))
    together = []
    for kind, answer in zip(kinds, answers, strict=True):
        if kind == "bad":
            assert "truncated or damaged" in answer
        else:
            assert cosine(answer.as_numpy("embedding")[0], expected[kind]) >= 0.99999
            together.append(json.loads(answer.as_numpy("info")[0, 0])["batch_items"])
    assert np.median(together) > 2


def outcome(client: Client, inputs: dict):
    """Each on a client of its own: tritonclient's are for one thread each."""
    own = Client(client.protocol, client.address)
    try:
        return own.infer(**inputs)
    except InferenceServerException as error:
        return error.message()
    finally:
        own.client.close()


def test_the_models_own_metrics(served, client):
    """Told once a second: tokens and patches of what went through, among Triton's figures."""
    before = figures(served)
    tokens = sum(int(client.infer(**inputs).as_numpy("tokens")[0, 0]) for inputs in ({"text": b"red"}, {"image": RED}))
    assert await_that(lambda: figures(served)["inputs"] >= before["inputs"] + 2)
    after = figures(served)
    assert after["tokens"] >= before["tokens"] + tokens
    assert after["patches"] >= before["patches"] + 16
    assert after["passes"] > before["passes"]
    assert after["failed_inputs"] == after["halved_passes"] == 0


def test_nothing_is_computed_for_who_does_not_wait(served):
    """More long texts than two batches hold, each soon given up: most are still in the queue then, and are dropped."""
    client = Client(tritonclient.grpc, served.triton_grpc)
    before = figures(served)["inputs"]
    with ThreadPoolExecutor(160) as pool:
        gone = list(pool.map(lambda n: gives_up(served, b"red " * 1000 + b"%d" % n), range(160)))
    assert sum(gone) > 100
    assert client.vector(text=b"red").shape == (128,)
    time.sleep(1.5)  # figures are told once a second
    assert figures(served)["inputs"] - before < 140
    client.client.close()


def gives_up(served, text: bytes) -> bool:
    client = Client(tritonclient.grpc, served.triton_grpc)
    try:
        client.infer(text=text, client_timeout=0.05)
    except InferenceServerException as error:
        return error.status() == "StatusCode.DEADLINE_EXCEEDED"
    finally:
        client.client.close()
    return False


def figures(served) -> dict[str, float]:
    text = httpx.get(f"http://{served.triton_metrics}/metrics").text
    return {name: float(value) for name, value in re.findall(r"^qwen3_vl_embed_(\w+)_total(?:{.*})? (\S+)", text, re.M)}


def await_that(condition) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_text_and_image_in_one_row_are_one_vector(client):
    both = client.vector(text=b"red", image=RED)
    assert both.shape == (128,)
    assert cosine(both, client.vector(text=b"red")) < 0.99999 > cosine(both, client.vector(image=RED))


def test_inputs_under_other_names_are_refused(client):
    with pytest.raises(InferenceServerException):
        client.infer(text=b"red", names=("text", "image", "instructions"))
    assert client.vector(text=b"red").shape == (128,)
