"""/v1/embeddings, /v2/embed and /vectorize in front of the real model: the vectors are those of /txt and /img/embed."""

import base64
import json

import httpx
import numpy as np
import pytest

from tests.in_process import adapter, png64, refused
from tests.test_openai_schema import MARK

RED, BLUE = png64(229, 0, 0), png64(3, 67, 223)
URL = f"data:image/png;base64,{RED}"
TINY = "qwen3-vl-color-tiny"


@pytest.fixture(scope="module")
def http(stack):
    with httpx.Client(base_url=stack.adapter_url, timeout=60) as client:
        yield client


def ours(http, *items: dict, **options) -> np.ndarray:
    """(N, D): each item by our own endpoints, alone."""
    vectors = []
    for item in items:
        path = "/img/embed" if "image" in item else "/txt/embed"
        body = {"input": item["image"], **{k: v for k, v in item.items() if k != "image"}} if "image" in item else item
        answer = http.post(path, json=body | options)
        assert answer.status_code == 200, answer.text
        vectors.append(answer.json()["embedding"])
    return np.array(vectors, dtype=np.float32)


def openai(http, **body) -> np.ndarray:
    answer = http.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return np.array([each["embedding"] for each in answer.json()["data"]], dtype=np.float32)


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    assert found.shape == expected.shape
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return bool((np.sum(found * expected, axis=1) / norms >= 0.999999).all())


def part(image=RED):
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}


def text(words):
    return {"type": "text", "text": words}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def test_texts_images_and_both_are_ours(http):
    found = openai(
        http, input=["red", URL, f"dark red {URL}", {"text": "red", "image": BLUE}, {"content": [part(BLUE)]}]
    )
    expected = ours(
        http,
        {"input": "red"},
        {"image": RED},
        {"image": RED, "text": "dark red", "image_at": -1},
        {"image": BLUE, "text": "red"},
        {"image": BLUE},
    )
    assert same(found, expected)


def test_the_place_of_an_image_is_kept(http):
    before, inside, after = (
        openai(http, messages=[user(*parts)])[0]
        for parts in ([part(), text("dark red")], [text("dark "), part(), text("red")], [text("dark red"), part()])
    )
    places = ours(http, *({"image": RED, "text": "dark red", "image_at": at} for at in (0, 5, -1)))
    assert same(np.stack([before, inside, after]), places)
    assert (places @ places.T - np.eye(3) < 0.9999).all()
    marked = [user(part(), text(f"dark {MARK}red"))]
    assert same(openai(http, messages=marked), places[1:2])
    recipes = http.post("/v1/embeddings", json={"messages": [marked, [user(text("red"))]]}).headers["x-recipe"]
    assert len(set(recipes.split(", "))) == 2
    many = [[user(text("dark red"[:at]), part(), text("dark red"[at:]))] for at in range(1, 8)]
    several = http.post("/v1/embeddings", json={"messages": [*many, [user(text("red"))]]}).headers["x-recipe"]
    assert several.count(", ") == 7
    many.append([user(text("dark red"), part())])
    more = http.post("/v1/embeddings", json={"messages": [*many, [user(text("red"))]]}).headers["x-recipe"]
    assert more.endswith(", and 1 more")


def test_a_conversation_is_its_content_with_its_instruction(http):
    system = {"role": "system", "content": "Name the colour."}
    generation = {"role": "assistant", "content": [text("")]}
    conversations = [[system, user(text("red")), generation], [system, user(part()), generation]]
    found = openai(http, messages=conversations, continue_final_message=True, add_special_tokens=True)
    assert same(found, ours(http, {"input": "red"}, {"image": RED}, instruction="Name the colour."))


@pytest.mark.parametrize("options", [{"dimensions": 16}, {"pooling": "mean"}, {"normalize": False}, {"layer": -2}])
def test_our_options_are_extra_fields(http, options):
    assert same(openai(http, input=["red", URL], **options), ours(http, {"input": "red"}, {"image": RED}, **options))


def test_base64_holds_the_numbers_of_the_lists(http):
    numbers = openai(http, input=["red", URL])
    answer = http.post("/v1/embeddings", json={"input": ["red", URL], "encoding_format": "base64"}).json()
    decoded = [np.frombuffer(base64.b64decode(each["embedding"], validate=True), "<f4") for each in answer["data"]]
    assert (np.stack(decoded) == numbers).all()
    halves = openai(http, input=["red"], dtype="float16")
    assert (halves == numbers[:1].astype(np.float16)).all()


def test_usage_counts_tokens_whether_they_were_computed_or_not(http):
    body = {"input": ["a shade never asked before", "another shade", "another shade"]}
    first, again = http.post("/v1/embeddings", json=body), http.post("/v1/embeddings", json=body)
    assert (first.headers["x-cache-hits"], again.headers["x-cache-hits"]) == ("1", "3")
    assert first.json()["usage"] == again.json()["usage"]
    one = http.post("/v1/embeddings", json={"input": body["input"][:2]}).json()["usage"]["total_tokens"]
    rendered = [len(http.post("/debug/render", json={"text": each}).json()["ids"]) for each in body["input"]]
    assert first.json()["usage"] == {"prompt_tokens": sum(rendered), "total_tokens": sum(rendered)}
    assert one == sum(rendered[:2])
    assert again.headers["x-tokens"] == "0"
    longest = max(rendered)
    assert http.post("/v1/embeddings", json=body | {"truncate_prompt_tokens": longest}).status_code == 200
    error = refused(http.post("/v1/embeddings", json=body | {"truncate_prompt_tokens": longest - 1}), 400)
    assert error["param"] == "truncate_prompt_tokens"


def test_a_long_list_is_answered_in_order(http):
    names = [f"shade {index % 50}" for index in range(1500)]
    found = openai(http, input=names)
    assert found.shape == (1500, 128)
    assert same(found[:50], ours(http, *({"input": name} for name in names[:50])))
    assert (found[50:100] == found[:50]).all()


@pytest.mark.parametrize("value", [RED, [RED], {"text": RED}, [{"text": URL}], [[user(text(RED))]], {"content": RED}])
def test_letters_of_an_image_are_no_text(http, value):
    sentence = refused(http.post("/v1/embeddings", json={"input": value}), 400)["message"]
    assert "the text is an image" in sentence
    assert "data: URL" in sentence


def test_cohere_and_weaviate_get_the_same_vectors(http):
    body = {"inputs": [{"content": [text("red")]}, {"content": [part()]}, {"content": [text("red"), part()]}]}
    answer = http.post("/v2/embed", json=body | {"embedding_types": ["float", "base64"]})
    assert answer.status_code == 200, answer.text
    expected = ours(http, {"input": "red"}, {"image": RED}, {"image": RED, "text": "red", "image_at": -1})
    found = answer.json()["embeddings"]
    assert same(np.array(found["float"], dtype=np.float32), expected)
    decoded = [np.frombuffer(base64.b64decode(each), "<f4") for each in found["base64"]]
    assert (np.stack(decoded) == np.array(found["float"], dtype=np.float32)).all()
    assert answer.json()["response_type"] == "embeddings_by_type"
    assert answer.json()["id"] == answer.headers["x-request-id"]
    content = json.dumps({"texts": ["red"], "images": [RED]}).encode()
    request = http.build_request("POST", "/vectorize", content=content)
    assert "content-type" not in request.headers  # Go sends none
    vectors = http.send(request).json()
    assert same(np.array(vectors["textVectors"], dtype=np.float32), expected[:1])
    assert same(np.array(vectors["imageVectors"], dtype=np.float32), expected[1:2])


PATHS = {"/v1/embeddings": {"input": "red"}, "/v2/embed": {"texts": ["red"]}, "/vectorize": {"texts": ["red"]}}


def sentence(path: str, answer: httpx.Response) -> str:
    """Where the callers of a path look for what went wrong."""
    body = answer.json()
    if path == "/v1/embeddings":
        return body["error"]["message"]
    assert body.keys() == {"/v2/embed": {"message"}, "/vectorize": {"error"}}[path] | {"type", "param", "code"}
    return body["message" if path == "/v2/embed" else "error"]


@pytest.mark.parametrize("path", PATHS)
async def test_every_error_has_its_schemas_envelope(stack, path):
    body = PATHS[path]
    async with adapter(stack.triton_grpc, api_key="k-1", max_items=2, max_list_items=2) as http:
        key = {"authorization": "Bearer k-1"}

        async def told(status, headers=key, method="POST", where=path, **sent):
            answer = await http.request(method, where, headers=headers, **sent)
            assert answer.status_code == status, answer.text
            return sentence(path, answer)

        assert "key" in await told(401, headers={}, json=body)
        assert "Unknown field" in await told(400, json=body | {"encodingFormat": "float"})
        assert "JSON" in await told(415, content=b"{}", headers=key | {"content-type": "text/plain"})
        assert "Accept" in await told(406, json=body, headers=key | {"accept": "application/x-npy"})
        assert "query string" in await told(400, json=body, where=f"{path}?dimensions=8")
        assert "endpoints" in await told(405, method="GET")
        name, value = next(iter(body.items()))
        assert "3 " in await told(413, json={name: [value if isinstance(value, str) else "red"] * 3})
        assert TINY in await told(404, json=body, where=f"/another{path}")
        http.app.state.admission.pending = 10**6
        assert "rate limit" in await told(429, headers={}, content=b"")  # before its key and its body are read


@pytest.mark.parametrize("path", PATHS)
async def test_by_the_models_name_and_no_other(stack, path):
    body = PATHS[path]
    async with adapter(stack.triton_grpc) as http:
        assert (await http.post(f"/{TINY}{path}", json=body)).status_code == 200
        assert f"/{TINY}{path}" in (await http.get("/openapi.json")).json()["paths"]


async def test_a_model_goes_by_its_names_and_by_those_that_a_setting_gives_it(stack):
    aliases = "text-embedding-3-small, Embed-V4.0"
    async with adapter(stack.triton_grpc, model_aliases=aliases) as http:
        for name in (TINY, TINY.upper(), "text-embedding-3-small", "embed-v4.0"):
            answer = await http.post("/v1/embeddings", json={"input": "red", "model": name})
            assert answer.status_code == 200
            assert answer.json()["model"] == TINY
            assert (await http.post("/v2/embed", json={"texts": ["red"], "model": name})).status_code == 200
        refused(await http.post("/v1/embeddings", json={"input": "red", "model": "text-embedding-3-large"}), 404)
        listed = (await http.get("/v1/models")).json()
        assert [each["id"] for each in listed["data"]] == [TINY, "text-embedding-3-small", "Embed-V4.0"]
        assert not any("max_model_len" in each for each in listed["data"])  # mteb would ask for truncation
    async with adapter(stack.triton_grpc, any_model_name=True) as http:
        assert (await http.post("/v1/embeddings", json={"input": "red", "model": "gpt-5"})).status_code == 200
    async with adapter(stack.triton_grpc) as http:
        refused(await http.post("/v1/embeddings", json={"input": "red", "model": "text-embedding-3-small"}), 404)


async def test_models_and_health_are_open_and_the_rest_is_not():
    async with adapter(api_key="k-1") as http:  # without a model
        assert (await http.get("/v1/models")).json() == {"object": "list", "data": []}
        for start in ("/v1/health", "/.well-known"):
            for method in ("GET", "HEAD"):
                assert (await http.request(method, f"{start}/live")).status_code == 200
                assert (await http.request(method, f"{start}/ready")).status_code == 503
        for path in ("/v1/metadata", "/meta"):
            refused(await http.get(path), 401)
            answer = await http.get(path, headers={"authorization": "Bearer k-1"})
            assert answer.json()["modelInfo"] == []


async def test_a_full_list_must_fit_into_what_may_wait(stack):
    async with adapter(stack.triton_grpc, max_items=2, max_pending_items=4, workers=2) as http:
        assert (await http.post("/v1/embeddings", json={"input": ["red", "blue"]})).status_code == 200
        assert "at most 2" in refused(await http.post("/v1/embeddings", json={"input": ["red"] * 3}), 413)["message"]


async def test_the_contract_declares_both_limits(stack):
    async with adapter(stack.triton_grpc) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]

        def first_array(path, field="input"):
            schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"][field]
            return next(each["maxItems"] for each in schema["anyOf"] if each.get("type") == "array")

        assert first_array("/txt/embed") == first_array("/img/embed") == 256
        most = first_array("/v1/embeddings")
        assert 256 < most <= 2048  # less where this machine cannot do so many in time
        assert first_array("/v2/embed", "texts") == most


@pytest.mark.parametrize("path", PATHS)
async def test_a_list_that_would_miss_the_deadline_is_refused_before_anything_is_computed(stack, path):
    async with adapter(stack.triton_grpc) as http:
        state = http.app.state
        slow = state.readiness.model["warm_up"] | {"pass": 1.0, "text": 1.0, "image": 1.0, "batch": 64}
        state.readiness.model = state.readiness.model | {"warm_up": slow}
        field = next(iter(PATHS[path]))
        body = {field: [f"a shade that takes {index} s" for index in range(500)]}
        answer = await http.post(path, json=body)
        assert answer.status_code == 400, answer.text
        assert "At most about 4" in sentence(path, answer)  # 46 or so, in 0.8 of 60 s
        assert "not 500" in sentence(path, answer)
        detail = answer.json()["error"] if path == "/v1/embeddings" else answer.json()
        assert detail["param"] == field
        assert not state.dispatcher._flights._flights


def test_the_examples_of_the_contract_are_answered(http):
    for path in PATHS:
        content = http.get("/openapi.json").json()["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert content["examples"]
        for example in content["examples"].values():
            assert http.post(path, json=example["value"]).status_code == 200
