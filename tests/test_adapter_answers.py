"""The forms of an answer: whatever the form, the numbers are those of the plain JSON answer."""

import base64
import io

import httpx
import numpy as np
import pytest

from client.errors import InvalidInput, NotAcceptable
from client.http.answers import JSON, MEDIA_TYPES, NPY, RAW, Done, Form, accepted, answer, stages_ms
from client.items import Embedding, EmbedInput, Recipe
from tests.in_process import adapter, png64, refused

DTYPES: dict[str, np.dtype] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}


def read_json(response: httpx.Response, dtype: str) -> np.ndarray:
    return np.array(response.json()["embedding"], dtype=DTYPES[dtype])


def read_base64(response: httpx.Response, dtype: str) -> np.ndarray:
    sent = response.json()["embedding"]
    vectors = [np.frombuffer(base64.b64decode(one, validate=True), DTYPES[dtype]) for one in np.atleast_1d(sent)]
    return np.array(vectors) if isinstance(sent, list) else vectors[0]


def read_npy(response: httpx.Response, dtype: str) -> np.ndarray:
    vectors = np.load(io.BytesIO(response.content), allow_pickle=False)
    assert vectors.dtype == DTYPES[dtype]
    return vectors


def read_raw(response: httpx.Response, dtype: str) -> np.ndarray:
    assert response.headers["x-dtype"] == dtype
    return np.frombuffer(response.content, DTYPES[dtype]).reshape([*map(int, response.headers["x-shape"].split(","))])


FORMS = {
    "json": (JSON, {}, read_json),
    "base64": (JSON, {"encoding_format": "base64"}, read_base64),
    "npy": (NPY, {}, read_npy),
    "raw": (RAW, {}, read_raw),
}


@pytest.fixture(scope="module")
def http(stack):
    with httpx.Client(base_url=stack.adapter_url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/txt/embed", "cerulean"),
        ("/txt/embed", ["cerulean"]),
        ("/txt/embed", ["cerulean", "rust", "cerulean"]),
        ("/img/embed", png64(0, 90, 200)),
        ("/img/embed", [png64(0, 90, 200), png64(140, 60, 20)]),
    ],
)
def test_every_form_holds_the_numbers_of_the_plain_answer(http, path, value, form, dtype):
    plain = read_json(http.post(path, json={"input": value}), "float32")
    media_type, fields, read = FORMS[form]
    response = http.post(path, json={"input": value, "dtype": dtype, **fields}, headers={"accept": media_type})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == media_type
    vectors = read(response, dtype)
    assert vectors.shape == plain.shape
    assert vectors.tobytes() == plain.astype(DTYPES[dtype]).tobytes()  # float32 exactly, float16 rounded once


def test_what_nobody_asked_for_is_not_there(http):
    """The answer of the benchmark's contract, to the byte, however its default is spelled."""
    body = {"input": ["teal", "coral"]}
    plain = http.post("/txt/embed", json=body)
    assert list(plain.json()) == ["embedding"]
    for accept in ("*/*", "", JSON, "text/html, image/gif, */*; q=0.2"):
        for fields in ({}, {"encoding_format": "float", "dtype": "float32"}, {"encoding_format": None, "dtype": None}):
            response = http.post("/txt/embed", json=body | fields, headers={"accept": accept})
            assert response.content == plain.content
            assert "x-dtype" not in response.headers


def test_the_form_is_no_option_of_the_model(http):
    first = http.post("/txt/embed", json={"input": "asked for in many forms"})
    for media_type, fields, _ in FORMS.values():
        body = {"input": "asked for in many forms", "dtype": "float16", **fields}
        again = http.post("/txt/embed", json=body, headers={"accept": media_type})
        assert (again.headers["x-cache-hits"], again.headers["x-tokens"]) == ("1", "0")
        assert again.headers["x-recipe"] == first.headers["x-recipe"]


def test_errors_are_json_in_every_form(http):
    for media_type, fields, _ in FORMS.values():
        response = http.post("/txt/embed", json={"input": ["x", ""], **fields}, headers={"accept": media_type})
        assert refused(response, 400)["param"] == "input[1]"


def answered(vector: list[float], form: Form):
    embedding = Embedding(np.array(vector, dtype=np.float32), {"id": "m"}, Recipe("r"))
    done = Done([embedding], "name", "id", stages_ms([embedding]), 0.0)
    return answer([EmbedInput(b"red", param="input[7]")], done, form)


@pytest.mark.parametrize(("form", "media_type"), [("float", JSON), ("base64", JSON), ("float", NPY), ("float", RAW)])
def test_a_number_that_float16_cannot_hold_is_an_error_and_never_infinity(form, media_type):
    half = Form(True, media_type, form, "float16")
    assert answered([65519.0, -65504.0, 1e-9], half).status_code == 200  # the nearest float16 is finite
    for number in (65520.0, -65520.0, 3e38):
        with pytest.raises(InvalidInput, match=r"too large for float16.*float32") as caught:
            answered([1.0, number], half)
        assert caught.value.param == "input[7]"
        assert answered([1.0, number], Form(True, media_type, form)).status_code == 200


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("Application/JSON; charset=utf-8", JSON),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        ("application/x-npy", NPY),
        ("APPLICATION/OCTET-STREAM", RAW),
        ("application/x-npy, */*", NPY),
        ("*/*, application/octet-stream", RAW),
        ("application/x-npy, application/json;q=0.5", NPY),
        ("application/json, application/x-npy", JSON),
        ("text/html, application/octet-stream; v=1, application/json", RAW),
    ],
)
def test_the_accept_header_chooses(accept, media_type):
    assert accepted(accept) == media_type


@pytest.mark.parametrize("accept", ["text/plain", "application/x-numpy", "text/*;q=0.5", "npy", ",;"])
async def test_an_accept_header_that_wants_something_else_is_406(accept):
    with pytest.raises(NotAcceptable):
        accepted(accept)
    async with adapter() as http:
        error = refused(await http.post("/txt/embed", json={"input": "red"}, headers={"accept": accept}), 406)
    assert all(media_type in error["message"] for media_type in MEDIA_TYPES)


async def test_base64_outside_of_json_is_refused():
    async with adapter() as http:
        for media_type in (NPY, RAW):
            body = {"input": "red", "encoding_format": "base64"}
            response = await http.post("/txt/embed", json=body, headers={"accept": media_type})
            assert refused(response, 400)["param"] == "encoding_format"
