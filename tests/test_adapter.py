"""The adapter's answers, in front of the real Triton with the real model."""

import asyncio
import base64
import re

import httpx
import numpy as np
import pytest

from qwen3_vl_embed.contract import read_contract
from tests.in_process import png, png64, refused

TIMES = ("x-queue-ms", "x-preprocess-ms", "x-forward-ms", "x-total-ms")


@pytest.fixture(scope="module")
def http(stack):
    with httpx.Client(base_url=stack.adapter_url, timeout=60) as client:
        yield client


def embed(http, path, value, field="input", **options) -> np.ndarray:
    response = http.post(path, json={field: value, **options})
    assert response.status_code == 200, response.text
    return np.array(response.json()["embedding"], dtype=np.float32)


def test_a_string_is_answered_with_a_vector_and_a_list_with_vectors(http):
    one = embed(http, "/txt/embed", "cloudy blue")
    several = embed(http, "/txt/embed", ["cloudy blue", "tomato", "cloudy blue", "moss"])
    dimension = http.get("/info").json()["model"]["dimension"]
    assert one.shape == (dimension,)
    assert several.shape == (4, dimension)
    assert embed(http, "/txt/embed", ["moss"]).shape == (1, dimension)
    assert set(http.post("/txt/embed", json={"input": "moss"}).json()) == {"embedding"}


def test_vectors_are_unit_length_in_order_and_the_same_alone(http):
    names = [f"shade number {index}" for index in range(32)]
    together = embed(http, "/txt/embed", names, pooling="mean")
    alone = np.stack([embed(http, "/txt/embed", name, pooling="mean", normalize=True) for name in names])
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.sum(together * alone, axis=1).min() > 0.9999


def test_images_come_in_both_fields_bare_or_as_data_urls(http):
    red, url = png64(229, 0, 0), "data:image/png;base64," + png64(229, 0, 0)
    vectors = [embed(http, "/img/embed", value, field) for value in (red, url) for field in ("input", "content")]
    assert all((vector == vectors[0]).all() for vector in vectors)
    pair = embed(http, "/img/embed", [red, png64(0, 0, 229)], "content")
    assert np.allclose(pair[0], vectors[0], atol=1e-4)
    assert not np.allclose(pair[1], vectors[0], atol=1e-4)


def test_options_reach_the_model(http):
    whole = embed(http, "/txt/embed", "tomato")
    assert len(embed(http, "/txt/embed", "tomato", dimensions=8)) == 8
    assert not np.allclose(embed(http, "/txt/embed", "tomato", pooling="mean"), whole, atol=1e-4)
    assert not np.allclose(embed(http, "/txt/embed", "tomato", instruction="Find a fruit."), whole, atol=1e-4)
    assert not np.isclose(np.linalg.norm(embed(http, "/txt/embed", "tomato", normalize=False)), 1, atol=1e-3)
    assert (embed(http, "/txt/embed", "tomato", dimensions=None) == whole).all()


def test_what_only_the_model_can_refuse_is_400_with_its_sentence(http):
    dimension = http.get("/info").json()["model"]["dimension"]
    assert (
        "dimensions"
        in refused(http.post("/txt/embed", json={"input": "x", "dimensions": dimension + 1}), 400)["message"]
    )
    assert len(embed(http, "/txt/embed", "x", dimensions=dimension)) == dimension
    for content in (b"%PDF-1.7", png(1, 2, 3)[:60], b"\xff\xd8\xff\xe0"):
        body = {"content": base64.b64encode(content).decode()}
        error = refused(http.post("/img/embed", json=body), 400)
        assert error["param"] == "content"
        assert "Traceback" not in error["message"]


def test_one_bad_image_fails_its_request_by_name_and_no_other(http):
    good = [png64(index, 100, 100) for index in range(16)]
    bad = [*good[:7], base64.b64encode(b"not an image").decode(), *good[8:]]
    assert refused(http.post("/img/embed", json={"input": bad}), 400)["param"] == "input[7]"
    assert embed(http, "/img/embed", good).shape[0] == 16


@pytest.mark.parametrize(
    "text",
    ["\0", "a\0b", "מִבְחָן", "👩‍👩‍👧‍👦", "<|im_end|>", "<|vision_start|><|image_pad|><|vision_end|>", "{{ 7 * 7 }}"],
)
def test_unusual_texts_get_finite_unit_vectors(http, text):
    vector = embed(http, "/txt/embed", text)
    assert np.isclose(np.linalg.norm(vector), 1, atol=1e-5)


def test_headers_tell_what_the_answer_cost(http):
    response = http.post("/txt/embed", json={"input": ["first seen here", "and here"]})
    times = [float(response.headers[name]) for name in TIMES]
    assert times[-1] == max(times)
    assert times[2] > 0
    assert int(response.headers["x-tokens"]) > 0
    assert response.headers["x-cache-hits"] == "0"
    names = re.findall(r"(\w+);dur=[\d.]+", response.headers["server-timing"])
    assert names == ["queue", "preprocess", "forward", "total"]


def test_repeats_come_from_the_cache_bit_by_bit_and_cost_nothing(http):
    before = http.get("/info").json()["cache"]
    body = {"input": "seen twice", "pooling": "mean"}
    first, second = http.post("/txt/embed", json=body), http.post("/txt/embed", json=body)
    assert first.content == second.content
    assert (first.headers["x-cache-hits"], second.headers["x-cache-hits"]) == ("0", "1")
    assert [float(second.headers[name]) for name in TIMES[:3]] == [0, 0, 0]
    assert second.headers["x-tokens"] == "0"
    after = http.get("/info").json()["cache"]
    assert (after["hits"], after["misses"]) == (before["hits"] + 1, before["misses"] + 1)
    assert after["entries"] == before["entries"] + 1


def test_equal_content_with_other_options_or_of_another_kind_is_not_a_repeat(http):
    for options in ({}, {"pooling": "mean"}, {"dimensions": 16}, {"instruction": "Find it."}, {"normalize": False}):
        assert http.post("/txt/embed", json={"input": "one key each", **options}).headers["x-cache-hits"] == "0"
    image = base64.b64encode(png(9, 8, 7)).decode()
    for options in ({}, {"max_pixels": 4096}):
        assert http.post("/img/embed", json={"input": image, **options}).headers["x-cache-hits"] == "0"


def test_equal_items_of_one_request_are_computed_once(http):
    response = http.post("/txt/embed", json={"input": ["the same"] * 8})
    assert response.headers["x-cache-hits"] == "7"
    assert len({tuple(vector) for vector in response.json()["embedding"]}) == 1


def test_health_and_info_tell_about_the_model(http):
    assert http.get("/health").json() == {"status": "ready"}
    assert http.head("/health").status_code == 200
    info = http.get("/info").json()
    assert info["model"].keys() >= {
        "id",
        "checkpoint",
        "revision",
        "dimension",
        "recipe",
        "dtype",
        "device",
        "limits",
        "versions",
    }
    assert info["adapter"]["limits"]["max_body_bytes"] > 0
    assert read_contract(http.get("/openapi.json").json()).max_items == info["adapter"]["limits"]["max_items"]
    assert "swagger" in http.get("/docs").text.lower()


def test_a_request_id_is_kept_or_made(http):
    assert http.get("/health/live", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for odd in ("a" * 129, "a b", '"'):
        assert re.fullmatch(
            "[0-9a-f]{16}", http.get("/health/live", headers={"x-request-id": odd}).headers["x-request-id"]
        )


async def test_many_requests_at_once_get_their_own_answers(stack):
    names = [f"crowd {index}" for index in range(64)]
    async with httpx.AsyncClient(base_url=stack.adapter_url, timeout=60) as http:
        answers = await asyncio.gather(*(http.post("/txt/embed", json={"input": name}) for name in names))
        again = await http.post("/txt/embed", json={"input": names})
    assert [answer.status_code for answer in answers] == [200] * 64
    assert [answer.json()["embedding"] for answer in answers] == again.json()["embedding"]
    assert again.headers["x-cache-hits"] == "64"
