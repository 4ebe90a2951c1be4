"""What the adapter accepts and what it says about it, without any server."""

import base64
import json
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from client import __version__, errors
from client.app import contract
from client.errors import TOLD, ApiError, InvalidInput, TooLarge
from client.http import contents
from client.http.answers import MEDIA_TYPES
from client.http.body import MOST_PARTS, parse_object
from client.http.cohere import CohereRequest
from client.http.images import decode_image
from client.http.openai import OpenAIRequest
from client.http.schemas import ImageRequest, RenderRequest, TextRequest
from client.http.weaviate import WeaviateRequest
from client.settings import Settings, SettingsError
from embedder import options
from qwen3_vl_embed.contract import read_contract

JPEG = b"\xff\xd8\xff\xe0 not a whole JPEG, but it begins like one"
JPEG64 = base64.b64encode(JPEG).decode()


def texts(**body) -> list[bytes]:
    return [item.text for item in TextRequest.parse(body, 4).items()]


def refusal(parse, *arguments) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parse(*arguments)
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"red"',
        b'{"input": "red"',
        b'{"input": "red",}',
        b'\xef\xbb\xbf{"input": "red"}',
        b'{"input": "\xff"}',
        b'{"input": "\\ud800"}',
        b'{"input": "\\udc00 red"}',
        b'{"input": "red", "dimensions": NaN}',
        b'{"input": "red", "dimensions": Infinity}',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"input":' * 10_000,
    ],
)
def test_what_is_not_a_json_object_is_refused(body):
    assert refusal(parse_object, body).message.endswith(".")


def test_of_a_key_sent_twice_the_last_counts():
    assert parse_object(b'{"input": "red", "input": "blue"}') == {"input": "blue"}


@pytest.mark.parametrize("part", [b"[],", b"{},", b"1.5,", b'"a",', b"[[", b'{"a":{"b":1}},'])
def test_millions_of_objects_are_refused_before_they_are_made(part):
    body = b'{"input": [' + part * (MOST_PARTS // sum(map(part.count, (b",", b"[", b"{"))) + 1) + b"1]}"
    with pytest.raises(TooLarge, match="commas and brackets"):
        parse_object(body)


def test_long_texts_are_no_objects():
    text = "A colour, as the eye has it, is light. " * 10**6
    assert parse_object(json.dumps({"input": text}).encode()) == {"input": text}


@pytest.mark.parametrize(
    ("schema", "fields"),
    [
        (CohereRequest, ("texts", "images", "inputs", "embedding_types")),
        (OpenAIRequest, ("modality",)),
        (WeaviateRequest, ("texts", "images")),
    ],
)
def test_of_a_list_that_is_wrong_everywhere_one_error_is_kept(schema, fields):
    for field in fields:
        with pytest.raises(ValidationError) as raised:
            schema.model_validate({field: [1] * 1000})
        assert raised.value.error_count() <= 2  # modality may be a string too


def test_of_many_unknown_fields_one_is_named():
    body = {"input": "red"} | {f"colour {n}": n for n in range(1000)}
    assert refusal(TextRequest.parse, body, 4).param == "colour 0"


def test_a_string_is_one_item_and_a_list_several():
    one, several = TextRequest.parse({"input": "red"}, 4), TextRequest.parse({"input": ["red", "blå \0"]}, 4)
    assert (one.source(), several.source()) == (("input", "red"), ("input", ["red", "blå \0"]))
    assert [(item.param, item.text) for item in one.items()] == [("input", b"red")]
    assert [(item.param, item.text) for item in several.items()] == [
        ("input[0]", b"red"),
        ("input[1]", "blå \0".encode()),
    ]


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (None, "input"),
        (7, "input"),
        ({"text": "red"}, "input"),
        ([], "input"),
        ("", "input"),
        (["red", ""], "input[1]"),
        ([101, 2023], "input[0]"),
        ([["red"]], "input[0]"),
        ([[101, 2023]], "input[0]"),
        (["red", None], "input[1]"),
        (["red"] * 5, "input"),
    ],
)
def test_input_that_is_not_text_is_refused_by_name(value, param):
    assert refusal(lambda: texts(input=value)).param == param


def test_the_largest_list_is_accepted_and_named_when_it_is_passed():
    assert len(texts(input=["red"] * 4)) == 4
    assert "between 1 and 4" in refusal(lambda: texts(input=["red"] * 5)).message


@pytest.mark.parametrize(
    ("name", "value"),
    [("dimensions", value) for value in (True, False, "64", 64.0, 1.5, 0, -1, 7, [64], 1e30)]
    + [("normalize", value) for value in (1, 0, "true")]
    + [("pooling", value) for value in ("cls", "LAST", 1, "")]
    + [("instruction", value) for value in (1, ["x"])]
    + [("encoding_format", value) for value in ("BASE64", "hex", "", 64, ["base64"], True)]
    + [("dtype", value) for value in ("float64", "bfloat16", "<f2", "", 16, ["float16"])]
    + [(name, 4096) for name in ("min_pixels", "max_pixels", "model", "encoding", "Input")],
)
def test_options_are_strict_and_unknown_fields_refused(name, value):
    assert refusal(lambda: texts(input="red", **{name: value})).param == name


@pytest.mark.parametrize("encoding_format", ["float", "base64", None])
@pytest.mark.parametrize("dtype", ["float32", "float16", None])
def test_the_form_of_the_answer_never_reaches_the_model(encoding_format, dtype):
    form = {"encoding_format": encoding_format, "dtype": dtype}
    for model, body in ((TextRequest, {"input": "red", "pooling": "mean"}), (ImageRequest, {"content": [JPEG64]})):
        assert model.parse(body | form, 4).items() == model.parse(body, 4).items()
    assert refusal(RenderRequest.parse, {"text": "red"} | form, 4).param in form  # no vector, no form


@pytest.mark.parametrize(("name", "value"), [("min_pixels", True), ("max_pixels", "64"), ("max_pixels", 0)])
def test_pixel_options_are_strict(name, value):
    assert refusal(ImageRequest.parse, {"input": JPEG64, name: value}, 4).param == name


def test_options_become_canonical_json():
    sent = {"pooling": "mean", "dimensions": 64, "normalize": False, "instruction": "x", "min_pixels": None}
    for body in (sent, dict(reversed(sent.items()))):
        (item,) = ImageRequest.parse({"content": JPEG64, **body}, 4).items()
        assert item.options == b'{"dimensions":64,"instruction":"x","normalize":false,"pooling":"mean"}'
    assert TextRequest.parse({"input": "red", "dimensions": None}, 4).items()[0].options == b""


def test_an_image_comes_in_either_field_but_not_in_both():
    for field in ("input", "content"):
        items = ImageRequest.parse({field: [JPEG64, f"data:image/jpeg;base64,{JPEG64}"]}, 4).items()
        assert [(item.param, item.image) for item in items] == [(f"{field}[0]", JPEG), (f"{field}[1]", JPEG)]
    for body in ({}, {"input": JPEG64, "content": JPEG64}):
        assert refusal(lambda body=body: ImageRequest.parse(body, 4).items()).param == "input"
    for field in ("input", "content"):
        assert refusal(ImageRequest.parse, {field: None}, 4).param == field


@pytest.mark.parametrize(
    "prefix", ["", "data:image/jpeg;base64,", "DATA:image/png;BASE64,", "data:;base64,", "data:image/x;a=b;base64,"]
)
def test_base64_is_accepted_bare_and_as_a_data_url(prefix):
    assert JPEG64.startswith("/9j/")  # and is no path
    assert decode_image(prefix + JPEG64, "input") == JPEG


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("", "empty"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png," + JPEG64, "not base64"),
        ("data:image/png;base64", "not base64"),
        ("data:,", "not base64"),
        ("data:text/plain;base64," + JPEG64, "not an image"),
        ("data:video/mp4;base64," + JPEG64, "single images"),
        ("http://127.0.0.1/red.png", "not opened"),
        ("https://169.254.169.254/latest", "not opened"),
        ("file:///etc/passwd", "not opened"),
        ("gopher://x", "not opened"),
        ("data:image/png;base64,http://x/y", "not opened"),
        ("/etc/passwd", "base64"),
        (JPEG64 + "\n", "line breaks"),
        (JPEG64[:8] + " " + JPEG64[8:], "base64"),
        ("__--" + JPEG64, "base64"),
        (JPEG64.rstrip("=") + "A", "base64"),
        ("AAA", "padding"),
        ("A", "base64"),
        ("=AAA", "padding"),
        ("é" * 8, "base64"),
    ],
)
def test_an_image_that_is_not_base64_is_refused_and_nothing_is_opened(value, word):
    error = refusal(decode_image, value, "input[7]")
    assert word in error.message
    assert error.param == "input[7]"


def test_errors_are_a_closed_set():
    assert set(TOLD) == set(ApiError.__subclasses__())
    assert [told.status for told in TOLD.values()] == [400, 401, 404, 406, 408, 413, 415, 429, 500, 503, 504]
    for kind, told in TOLD.items():
        assert f"── {kind.__name__} " in errors.__doc__
        body = json.loads(errors.error_response(kind("Sentence.", "input[7]")).body)
        assert body == {"error": {"message": "Sentence.", "type": told.type, "param": "input[7]", "code": told.code}}


@pytest.fixture(scope="module")
def document():
    return contract(Settings(max_items=32))


def test_openapi_declares_what_the_benchmark_reads(document):
    contract = read_contract(document)
    assert (contract.text_items, contract.image_items) == (32, 32)
    for path in ("/txt/embed", "/img/embed"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert [choice["type"] for choice in schema["properties"]["input"]["anyOf"]] == ["string", "array"]


def test_openapi_documents_every_answer(document):
    text = json.dumps(document)
    assert '"422"' not in text
    references = {part.split('"')[0] for part in text.split('"$ref": "')[1:]}
    assert references
    assert all(reference.startswith("#/components/schemas/") for reference in references)
    for path in ("/txt/embed", "/img/embed"):
        answers = document["paths"][path]["post"]["responses"]
        assert set(answers) == {"200", *(str(told.status) for told in TOLD.values())}
        for status in set(answers) - {"200"}:
            schema = answers[status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorResponse"}


def test_openapi_documents_the_forms_of_an_answer(document):
    for path in ("/txt/embed", "/img/embed"):
        operation = document["paths"][path]["post"]
        assert set(operation["responses"]["200"]["content"]) == set(MEDIA_TYPES)
        assert {"x-shape", "x-dtype"} <= set(operation["responses"]["200"]["headers"])
        fields = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
        for name, values in (("encoding_format", ["float", "base64"]), ("dtype", ["float32", "float16"])):
            assert values in [choice.get("enum") for choice in fields[name]["anyOf"]]
    assert "406" not in document["paths"]["/debug/render"]["post"]["responses"]


def test_openapi_examples_are_accepted(document):
    for path, model in (("/txt/embed", TextRequest), ("/img/embed", ImageRequest)):
        examples = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
        assert len(examples) >= 3
        for example in examples.values():
            assert model.parse(example["value"], 32).items()


def test_settings_are_read_by_name_and_frozen(monkeypatch):
    monkeypatch.setenv("ADAPTER_PORT", "8123")
    monkeypatch.setenv("ADAPTER_MAX_BODY_BYTES", "")
    monkeypatch.setenv("EMBED_ANYTHING", "is not for the adapter")
    settings = Settings.from_environment()
    assert (settings.port, settings.max_items) == (8123, 256)
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ADAPTER_MAX_ITEM", "3"),
        ("ADAPTER_MAX_ITEMS", "many"),
        ("ADAPTER_MAX_ITEMS", "0"),
        ("ADAPTER_DEADLINE_SECONDS", "nan"),
        ("ADAPTER_LOG_LEVEL", "loud"),
        ("ADAPTER_MAX_PENDING_ITEMS", "10"),
    ],
)
def test_unknown_settings_and_bad_values_are_refused_by_name(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment()


def test_the_version_stands_in_one_place():
    root = Path(__file__).parent.parent
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    assert "version" not in settings["project"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "client.__version__"}
    assert f"\n## {__version__}" in (root / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("field", ["instruction", "prompt"])
def test_options_go_along_with_each_item_and_are_bounded_before(field):
    assert contents.MAX_OPTIONS_BYTES == options.MAX_OPTIONS_BYTES
    assert TextRequest.parse({"input": ["red"] * 4, field: "{content}" + "a" * 16_000}, 4).items()
    long = TextRequest.parse({"input": ["red"] * 4, field: "{content}" + "a" * 16_384}, 4)
    assert "at most 16384" in refusal(long.items).message
