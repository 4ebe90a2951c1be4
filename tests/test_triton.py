"""Triton itself, over gRPC and HTTP: the wire contract, dynamic batching of mixed requests, errors that stay alone."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from embedder import Warnings
from qwen3_vl_embed.evaluation.colours import png, swatch
from tests.reference import cosine
from tests.test_contract_files import CONFIG
from tests.waits import counts, settled, until

pytestmark = pytest.mark.stack
MODEL = "qwen3_vl_embed"
OUTPUTS = [output.name for output in CONFIG.output]
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


@pytest.fixture(params=["grpc", "http", pytest.param("pipelined", marks=pytest.mark.faults)])
def served(request):
    return request.getfixturevalue("pipelined_stack" if request.param == "pipelined" else "stack")


@pytest.fixture
def client(served, request):
    over_http = request.node.callspec.params["served"] == "http"
    protocol, address = (
        (tritonclient.http, served.triton_http) if over_http else (tritonclient.grpc, served.triton_grpc)
    )
    client = Client(protocol, address)
    yield client
    client.client.close()


def test_a_text_and_an_image(client):
    for inputs in ({"text": b"red"}, {"image": RED}):
        result = client.infer(**inputs)
        columns = {name: result.as_numpy(name) for name in OUTPUTS}
        assert columns.pop("json") is None  # nobody asked for it
        assert {name: (column.dtype, column.shape) for name, column in columns.items()} == {
            "embedding": (np.float32, (1, 128)),
            "tokens": (np.int32, (1, 1)),
            "model": (np.uint8, (1, 8)),
            "recipe": (np.uint8, (1, 6)),
            "timings": (np.float32, (1, 2)),
            "batch_items": (np.int32, (1, 1)),
            "warnings": (np.uint32, (1, 1)),
        }
        assert np.linalg.norm(columns["embedding"]) == pytest.approx(1, abs=1e-5)
        assert columns["tokens"] > 10
        assert columns["batch_items"] == 1
        assert columns["warnings"] == 0
        assert (columns["timings"] > 0).all()


def test_a_rendering_has_no_vector(client):
    texts, options = [b"red", b"a longer one, dark red"], b'{"render": true, "dimensions": 8}'
    result = client.infer(text=texts, options=options, rows=2)
    embedding, tokens, rows = (result.as_numpy(name) for name in ("embedding", "tokens", "json"))
    assert embedding is None
    assert [[len(json.loads(row.tobytes())["ids"])] for row in rows] == tokens.tolist()
    assert (result.as_numpy("warnings") == Warnings.UNTRAINED_DIMENSIONS).all()
    assert (result.as_numpy("timings")[:, 1] == 0).all()  # no pass ran
    assert (result.as_numpy("batch_items") == 0).all()


def test_the_model_describes_itself_when_asked(client):
    """Without an input, and without a pass; the ids are those of the vectors that it makes."""
    result = client.infer(options=b'{"describe": true}')
    described = json.loads(result.as_numpy("json")[0].tobytes())
    assert (described["dimension"], described["model_type"]) == (128, "qwen3_vl")
    assert result.as_numpy("embedding") is None
    assert (result.as_numpy("tokens"), result.as_numpy("batch_items")) == (0, 0)
    for answer in (result, client.infer(text=b"red"), client.infer(image=RED)):
        assert answer.as_numpy("model").tobytes().hex() == described["id"]
        assert answer.as_numpy("recipe").tobytes().hex() == described["recipe"]["id"]


@pytest.mark.parametrize("wanted", [["tokens"], ["embedding", "recipe"], ["json"], ["json", "embedding"]], ids="+".join)
def test_only_the_outputs_that_were_asked_for_are_sent(client, wanted):
    for options in (b"", b'{"render": true}'):
        outputs = [client.protocol.InferRequestedOutput(name) for name in wanted]
        result = client.infer(text=b"red", options=options, outputs=outputs)
        sent = {name for name in OUTPUTS if result.as_numpy(name) is not None}
        assert sent == set(wanted) - {"embedding" if options else "json"}


@pytest.mark.parametrize(
    "options", [b"", b'{"render": true}', b'{"describe": true}'], ids=["none", "render", "describe"]
)
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_classification_request_harms_nobody(client, output, options):
    """KServe's: the largest so many numbers of an output. For one of BYTES or of none tritonserver 2.51 ends."""
    for classes in (1, 3, 10**6):
        asked = client.protocol.InferRequestedOutput(output, class_count=classes)
        with suppress(InferenceServerException):  # some are refused
            client.infer(text=b"red", options=options, outputs=[asked])
        assert client.vector(text=b"red").shape == (128,)


def test_rows_of_one_request(client):
    rows = client.infer(text=[b"red", b"", b"blue"], image=[b"", RED, b""], rows=3).as_numpy("embedding")
    singles = [client.vector(text=b"red"), client.vector(image=RED), client.vector(text=b"blue")]
    assert all(cosine(row, single) >= 0.99999 for row, single in zip(rows, singles, strict=True))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({}, "the text is blank"),
        ({"text": b"\xff\xfe"}, "not valid UTF-8"),
        ({"text": RED}, "the text is an image"),
        ({"text": base64.b64encode(RED), "image": RED}, "the text is an image"),
        ({"text": [b"red", base64.b64encode(RED)], "rows": 2}, "row 1: the text is an image"),
        ({"image": b"no image"}, "not an image this server reads"),
        ({"image": RED[:100]}, "truncated or damaged"),
        ({"image": b"\0\0\0\x20ftypisom" + bytes(64)}, "single images are served"),
        ({"text": b"red", "options": b"{"}, "options: Invalid JSON"),
        ({"text": b"red", "options": b'{"colour": 1}'}, "'colour' is not an option"),
        ({"text": b"red", "options": b'{"dimensions": 129}'}, "options.dimensions: at most 128"),
        ({"text": [b"red", b""], "rows": 2}, "row 1: the text is blank"),
        ({"text": [b"a", b"b"], "options": [b'{"dimensions": 8}', b""], "rows": 2}, "the same in all rows"),
        ({"text": [b"a", b"b"], "options": [b'{"render": true}', b""], "rows": 2}, "the same in all rows"),
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
            together.append(answer.as_numpy("batch_items")[0, 0])
    assert np.median(together) > 2


def test_requests_for_different_outputs_share_batches(client):
    lists = [None, ["batch_items"], ["embedding", "batch_items", "json"]]
    outputs = [names and [client.protocol.InferRequestedOutput(name) for name in names] for names in lists]
    with ThreadPoolExecutor(48) as pool:
        answers = list(pool.map(lambda i: outcome(client, {"text": b"teal", "outputs": outputs[i % 3]}), range(192)))
    assert np.median([answer.as_numpy("batch_items") for answer in answers]) > 2


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
    """Told once a second, each figure by itself: tokens and patches of what went through, among Triton's figures."""
    before = counts(served)
    tokens = sum(int(client.infer(**inputs).as_numpy("tokens")[0, 0]) for inputs in ({"text": b"red"}, {"image": RED}))
    more = {"inputs": 2, "tokens": tokens, "patches": 16, "passes": 1}
    until(lambda: all(counts(served)[name] >= before[name] + n for name, n in more.items()))
    after = counts(served)
    assert after["failed_inputs"] == after["halved_passes"] == 0


@pytest.mark.parametrize("served", ["grpc", pytest.param("pipelined", marks=pytest.mark.faults)], indirect=True)
def test_nothing_is_computed_for_who_does_not_wait(served):
    """More long texts than two batches hold, each soon given up: most are still in the queue then, and are dropped."""
    client = Client(tritonclient.grpc, served.triton_grpc)
    before = settled(served, "inputs")
    with ThreadPoolExecutor(160) as pool:
        gone = list(pool.map(lambda n: gives_up(served, b"red " * 1000 + b"%d" % n), range(160)))
    assert sum(gone) > 100
    assert client.vector(text=b"red").shape == (128,)
    assert settled(served, "inputs") - before < 140
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


def test_text_and_image_in_one_row_are_one_vector(client):
    both = client.vector(text=b"red", image=RED)
    assert both.shape == (128,)
    assert cosine(both, client.vector(text=b"red")) < 0.99999 > cosine(both, client.vector(image=RED))


@pytest.mark.parametrize("prefix", [b"", b"data:image/png;base64,", b"DATA:IMAGE/PNG;BASE64,", b"data:;base64,"])
def test_an_image_may_come_as_base64(client, prefix):
    """It is the same image: alone, beside others in a row, and with a text."""
    encoded = prefix + base64.b64encode(RED)
    assert cosine(client.vector(image=encoded), client.vector(image=RED)) >= 0.99999
    rows = client.infer(image=[encoded, RED], rows=2).as_numpy("embedding")
    assert cosine(*rows) >= 0.99999
    assert cosine(client.vector(text=b"red", image=encoded), client.vector(text=b"red", image=RED)) >= 0.99999


@pytest.mark.parametrize("endpoint", ["infer", "generate"])
def test_plain_json_carries_an_image(stack, endpoint):
    """What curl sends: JSON alone, which cannot hold bytes."""
    image = f"data:image/png;base64,{base64.b64encode(RED).decode()}"
    given = {"text": "", "image": image, "options": ""}
    names = [{"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [value]} for name, value in given.items()]
    body = {"inputs": names, "outputs": [{"name": "embedding"}]} if endpoint == "infer" else given
    answer = httpx.post(f"http://{stack.triton_http}/v2/models/{MODEL}/{endpoint}", json=body).raise_for_status().json()
    vector = answer["outputs"][0]["data"] if endpoint == "infer" else answer["embedding"]
    expected = Client(tritonclient.grpc, stack.triton_grpc).vector(image=RED)
    assert cosine(np.array(vector, np.float32), expected) >= 0.99999


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (b"data:image/png;base64,", "not an image this server reads"),
        (b"data:image/png,iVBORw0K", "send data:image/"),
        (b"data:text/plain;base64,aGVsbG8=", "send data:image/"),
        (base64.b64encode(RED)[:-1], "no valid base64"),
        (base64.encodebytes(RED), "without line breaks"),
        (base64.b64encode(b"hello, world, hello"), "not an image this server reads"),
        (base64.b64encode(RED[:100]), "truncated or damaged"),
        (RED.decode("latin-1").encode(), "or in JSON their base64"),
        (b"https://example.com/red.png", "send a file's bytes"),
    ],
)
def test_a_string_that_is_no_image_is_refused(client, image, sentence):
    assert sentence in client.refused(image=image)
    assert sentence in client.refused(text=b"red", image=image)


@pytest.mark.parametrize("beside", [{"parameters": {"dimensions": 8}}, {"dimensions": 8}], ids=["infer", "generate"])
def test_an_option_beside_the_inputs_is_refused(stack, beside):
    """Triton hands it over as a parameter; without a word the vector would be of the default recipe."""
    inputs = {"text": "red", "image": "", "options": ""}
    if "parameters" in beside:
        beside |= {
            "inputs": [{"name": n, "shape": [1, 1], "datatype": "BYTES", "data": [v]} for n, v in inputs.items()]
        }
        answer = httpx.post(f"http://{stack.triton_http}/v2/models/{MODEL}/infer", json=beside)
    else:
        answer = httpx.post(f"http://{stack.triton_http}/v2/models/{MODEL}/generate", json=inputs | beside)
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        'parameters are not read: send dimensions in the input "options", a JSON object',
    )


def test_other_parameters_change_nothing(client):
    """Triton's own (priority, timeout) and what clients send for others."""
    named = {"parameters": {"client": "a", "max_tokens": 3, "stream": False}, "priority": 1, "timeout": 10**7}
    np.testing.assert_allclose(client.vector(text=b"red", **named), client.vector(text=b"red"), atol=1e-5)


def test_inputs_under_other_names_are_refused(client):
    with pytest.raises(InferenceServerException):
        client.infer(text=b"red", names=("text", "image", "instructions"))
    assert client.vector(text=b"red").shape == (128,)
